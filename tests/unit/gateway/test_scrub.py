"""A secret does not come back, in whatever pieces it comes, and nothing else changes."""

from __future__ import annotations

import base64
import itertools
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.gateway.scrub import Scrubber
from hermitcrab.gateway.vault import Secret

CANARY = "sk-ant-api03-CANARY/not+a=real_key~0123456789"  # made up; opens nothing
SECRET = CANARY.encode()
SCRUBBER = Scrubber(Secret(CANARY))


def through(parts: list[bytes]) -> bytes:
    stream = SCRUBBER.stream()
    return b"".join([*map(stream.feed, parts), stream.finish()])


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


FORMS = [
    SECRET,
    quote(CANARY, safe="").encode(),
    "".join(f"%{byte:02x}" for byte in SECRET).encode(),
    "".join(f"%{byte:02X}" for byte in SECRET).encode(),
    SECRET.hex().encode(),
    SECRET.hex().upper().encode(),
]


@pytest.mark.parametrize("form", FORMS)
@given(before=st.binary(max_size=40), after=st.binary(max_size=40), places=st.lists(st.integers(0, 300), max_size=6))
def test_every_form_is_masked_however_it_is_cut(form: bytes, before: bytes, after: bytes, places: list[int]) -> None:
    text = before + form + after
    out = through(cut(text, places))
    assert form not in out
    assert len(out) == len(text)
    assert out == SCRUBBER.scrub(text)


@given(before=st.binary(max_size=9), after=st.binary(max_size=9), places=st.lists(st.integers(0, 300), max_size=6))
def test_base64_of_anything_around_the_secret_can_not_be_decoded_to_it(
    before: bytes, after: bytes, places: list[int]
) -> None:
    for encode, decode in (
        (base64.b64encode, base64.b64decode),
        (base64.urlsafe_b64encode, base64.urlsafe_b64decode),
    ):
        out = through(cut(encode(before + SECRET + after), places))
        # The characters at both edges carry bits of the neighbours too; at most two bytes of the secret are in them.
        assert SECRET[2:-2] not in decode(out.replace(b"*", b"A"))
        assert b"*" * (len(SECRET) - 2) in out


@given(text=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=6))
def test_what_holds_no_secret_is_not_changed(text: bytes, places: list[int]) -> None:
    assert through(cut(text, places)) == text


@given(st.lists(st.sampled_from([SECRET, SECRET[:7], SECRET[7:], b"sk-ant-", b"\n\n", b"data: "]), max_size=12))
def test_repeated_and_broken_secrets_are_masked_where_they_become_whole(parts: list[bytes]) -> None:
    out = through(parts)
    assert SECRET not in out
    assert out == SCRUBBER.scrub(b"".join(parts))


def test_an_event_passes_at_once() -> None:
    event = b'event: message\ndata: {"text": "sk-ant-api03 is how keys begin"}\n\n'
    assert SCRUBBER.stream().feed(event) == event


def test_only_a_possible_beginning_is_held() -> None:
    stream = SCRUBBER.stream()
    assert stream.feed(b"the key is " + SECRET[:20]) == b"the key is "
    assert stream.feed(b"!") == SECRET[:20] + b"!"
    assert stream.finish() == b""


def test_what_is_held_at_the_end_is_sent() -> None:
    stream = SCRUBBER.stream()
    assert stream.feed(SECRET[:-1]) == b""
    assert stream.finish() == SECRET[:-1]


def test_neither_scrubber_nor_stream_shows_the_secret() -> None:
    stream = SCRUBBER.stream()
    stream.feed(SECRET[:-1])
    assert "CANARY" not in repr(SCRUBBER) + repr(stream)
