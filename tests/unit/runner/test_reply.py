"""Who is sent what: nothing to the wrong chat, and nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.reply import Said, clean, parse_reply

ONE = frozenset({"main"})
TWO = frozenset({"main", "team"})


def said(text: str, destinations: frozenset[str] = TWO) -> list[tuple[str | None, str]]:
    return [(each.to, each.text) for each in parse_reply(text, destinations).said]


@pytest.mark.parametrize("destinations", [frozenset[str](), ONE, TWO])
def test_plain_text_goes_to_the_sessions_own_chat(destinations: frozenset[str]) -> None:
    assert said(" Good morning. ", destinations) == [(None, "Good morning.")]


def test_blocks_go_where_they_are_addressed() -> None:
    text = "so\n<message to=\"main\">\nfirst\n</message> and <message to='team' >second\nline</message> end"
    assert said(text) == [("main", "first"), ("team", "second\nline")]
    assert parse_reply(text, TWO).scratch == "so\n and  end"


def test_with_one_destination_nothing_is_scratch() -> None:
    assert said('Done. <message to="main">Hi</message>', ONE) == [("main", "Hi"), (None, "Done.")]


def test_internal_text_is_sent_to_nobody_wherever_it_stands() -> None:
    reply = parse_reply('a<internal>x <message to="team">no</message></internal>b <internal>y</internal>', TWO)
    assert reply.said == (Said(None, "ab"),)
    assert "no" in reply.scratch
    assert said('<message to="team">yes<internal>hm</internal></message>') == [("team", "yes")]


def test_a_stranger_is_sent_nothing_and_nobody_else_gets_it() -> None:
    reply = parse_reply('<message to="stranger">secret</message> bye', TWO)
    assert reply.undeliverable == (Said("stranger", "secret"),)
    assert reply.said == (Said(None, "bye"),)
    assert "secret" not in reply.scratch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("<internal>only</internal>", []),
        ('<message to="team"></message>', []),
        ('<message to="team">cut off', [("team", "cut off")]),
        ("before <internal>cut off", [(None, "before")]),
        ("<message>no address</message>", [(None, "no address")]),
        ('<message to="">empty address</message>', [(None, "empty address")]),
        ('<message id="3" to="team">attributes</message>', [("team", "attributes")]),
        ("stray </message> </internal> tags", [(None, "stray </message>  tags")]),
        ('<message to="team">a <message to="main">b</message> c', [("team", 'a <message to="main">b')]),
        ("<messages>not ours</messages>", [(None, "<messages>not ours</messages>")]),
        ("1 < 2 and <b>bold</b>", [(None, "1 < 2 and <b>bold</b>")]),
    ],
)
def test_odd_text(text: str, expected: list[tuple[str | None, str]]) -> None:
    assert said(text) == expected


def test_in_mid_turn_only_blocks_count() -> None:
    reply = parse_reply('Let me look. <message to="team">Looking.</message>', ONE | {"team"}, blocks_only=True)
    assert reply.said == (Said("team", "Looking."),)
    assert parse_reply("Let me look.", ONE, blocks_only=True).said == ()


PIECES = st.lists(
    st.sampled_from(
        ['<message to="main">', '<message to="no">', "</message>", "<internal>", "</internal>", "<message>"]
    )
    | st.text(st.characters(exclude_characters="<>"), max_size=5),
    max_size=12,
)


@given(PIECES, st.sampled_from([frozenset[str](), ONE, TWO]))
def test_every_word_is_sent_or_undeliverable_or_scratch(pieces: list[str], destinations: frozenset[str]) -> None:
    reply = parse_reply("".join(pieces), destinations)
    everything = " ".join([*(each.text for each in (*reply.said, *reply.undeliverable)), reply.scratch])
    for piece in pieces:
        if not piece.startswith("<"):
            assert all(word in everything for word in piece.split())
    assert all(each.to is None or each.to in destinations for each in reply.said)
    assert all(each.to not in destinations for each in reply.undeliverable)


@given(st.text(), st.sampled_from([ONE, TWO]))
def test_words_for_a_stranger_are_never_said(secret: str, destinations: frozenset[str]) -> None:
    marked = f"[{secret.replace('<', '').replace('>', '')}]"
    reply = parse_reply(f'hello <message to="stranger">{marked}</message>', destinations)
    assert all(marked not in each.text for each in reply.said)


@given(st.text(st.characters()))
def test_cleaned_text_can_always_be_sent(text: str) -> None:
    assert clean(text).encode().decode() == clean(text)


def test_halves_of_a_pair_are_joined() -> None:
    assert clean("\ud83e\udd80!") == "🦀!"
    assert clean("a\ud83e") == "a�"
