"""Nothing that looks like a credential, and nothing that was registered, comes out of the redactor."""

from __future__ import annotations

import base64
import json
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.observe.redaction import MAX_TEXT, REDACTED, Redactor

# None of these is a real credential: shapes only, filled by hypothesis.
ALNUM = string.ascii_letters + string.digits


def word(alphabet: str, least: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most or least + 30)


def shaped(pattern: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda values: pattern.format(*values))


BODY = word(ALNUM, 24)
SECRETS = st.one_of(
    shaped("sk-ant-api03-{}", BODY),
    shaped("sk-{}", BODY),
    shaped("ghp_{}", BODY),
    shaped("github_pat_{}", BODY),
    shaped("xoxb-{}", BODY),
    shaped("AKIA{}", word(string.ascii_uppercase + string.digits, 16, 16)),
    shaped("eyJ{}.{}.{}", BODY, BODY, BODY),
    shaped("12345678:{}", word(ALNUM, 35, 35)),
    shaped("AIza{}", word(ALNUM, 35, 35)),
)
AROUND = st.text(st.characters(exclude_characters=ALNUM + "_-.", exclude_categories=["Cs", "L", "N"]), max_size=20)


@given(AROUND, SECRETS, AROUND)
def test_a_credential_never_comes_through_whatever_stands_around_it(before: str, secret: str, after: str) -> None:
    redacted = Redactor().text(f"{before}{secret}{after}")
    assert secret not in redacted
    assert REDACTED in redacted


@given(st.sampled_from(["Bearer ", "bearer ", "BEARER ", "Basic "]), BODY)
def test_what_follows_an_authorization_scheme_never_comes_through(scheme: str, secret: str) -> None:
    assert secret not in Redactor().text(f"Authorization: {scheme}{secret}\r\n")


@given(BODY)
def test_passwords_in_addresses_never_come_through(secret: str) -> None:
    assert secret not in Redactor().text(f"fetching https://user:{secret}@example.com/x")


@given(word(ALNUM + "+/=\n", 100, 900), st.booleans())
def test_private_keys_never_come_through_even_cut_off(body: str, cut: bool) -> None:
    text = f"x -----BEGIN RSA PRIVATE KEY-----\n{body}" + ("" if cut else "\n-----END RSA PRIVATE KEY----- y")
    redacted = Redactor().text(text)
    assert body not in redacted
    assert redacted.startswith("x ")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=60), st.text(max_size=40), st.data())
def test_a_registered_value_never_comes_through_plain_or_encoded(secret: str, around: str, data: st.DataObject) -> None:
    redactor = Redactor()
    redactor.register(secret)
    form = data.draw(
        st.sampled_from([secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()]), label="form"
    )
    redacted = redactor.text(f"{around}{form}{around}")
    assert form not in redacted.replace(REDACTED, "") or form in f"{around}{around}"


NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.just("THE-SECRET"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("THE-SECRET"), inner, max_size=3)
    ),
    max_leaves=15,
)


@given(NESTED)
def test_values_are_searched_to_the_bottom(value: object) -> None:
    redactor = Redactor()
    redactor.register("THE-SECRET")
    assert "THE-SECRET" not in json.dumps(redactor.value(value), ensure_ascii=False)


@pytest.mark.parametrize("key", ["authorization", "Cookie", "db_password", "api_key", "x-api-key", "refresh_token"])
def test_values_under_a_telling_name_are_dropped_whatever_they_look_like(key: str) -> None:
    assert Redactor().value({key: "hunter2"}) == {key: REDACTED}


def test_ordinary_words_and_numbers_come_through() -> None:
    value = {"tokens": 12, "task": "desk-lamp", "ratio": 0.5, "session": "sess-1700000000000-0a1b2c3d4e", "ok": True}
    assert Redactor().value(value) == value


def test_what_is_not_text_is_described_and_searched() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    class Telling:
        def __str__(self) -> str:
            return "key=sk-ant-" + "a" * 30

    redacted = Redactor().value([Broken(), Telling(), b"sk-ant-" + b"b" * 30, {"a", 1}])
    assert "aaaa" not in str(redacted)
    assert "bbbb" not in str(redacted)
    assert "Broken" in str(redacted)


def test_a_short_registered_value_does_not_blot_out_words() -> None:
    redactor = Redactor()
    redactor.register("a")
    assert redactor.text("a cat") == "a cat"


def test_text_without_end_is_cut() -> None:
    assert len(Redactor().text("x" * 10_000_000)) < MAX_TEXT + 100


def test_a_value_that_contains_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "…" in str(Redactor().value(loop))
