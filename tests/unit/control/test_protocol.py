from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab import errors
from hermitcrab.control.protocol import Params, code_of, error_from_json, error_to_json
from hermitcrab.errors import BadInputError, ChannelError, EngineError, Failure, HermitcrabError

EVERY_ERROR = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, HermitcrabError)]


@pytest.mark.parametrize("error_type", [each for each in EVERY_ERROR if each not in {ChannelError, EngineError}])
def test_an_error_crosses_the_socket_unchanged(error_type: type[HermitcrabError]) -> None:
    back = error_from_json(error_to_json(error_type("what happened", hint="what to do")))
    assert type(back) is error_type
    assert (back.message, back.hint, back.exit_code) == ("what happened", "what to do", error_type.exit_code)


def test_an_error_with_more_fields_keeps_its_words_and_exit_code() -> None:
    back = error_from_json(error_to_json(EngineError(Failure.IMAGE_UNAVAILABLE, "no image", hint="build it")))
    assert (type(back), back.message, back.hint, back.exit_code) == (HermitcrabError, "no image", "build it", 1)


def test_codes_are_words_and_all_different() -> None:
    codes = [code_of(each) for each in EVERY_ERROR]
    assert len(set(codes)) == len(codes)
    assert code_of(errors.HostUnreachableError) == "host-unreachable"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_error_object_becomes_an_error_with_a_sane_exit_code(value: object) -> None:
    assert 0 < error_from_json(value).exit_code < 256


@given(
    st.dictionaries(st.text(min_size=1), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
)
def test_params_give_what_was_asked_for_or_bad_input(values: dict[str, object]) -> None:
    params = Params("method", values)
    for name in values:
        for read in (
            params.optional_text,
            params.flag,
            lambda each: params.integer(each, default=0, least=-5, most=5),
            lambda each: params.texts(each, most=3),
        ):
            try:
                read(name)
            except BadInputError:
                continue
    params.done()
