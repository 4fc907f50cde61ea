"""What the model reads: shapes, order, escaping, and no row that can break it."""

from __future__ import annotations

import re
import time
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.prompt import (
    Destination,
    compose,
    correction,
    escape,
    instructions,
    origin_of,
    parse_destinations,
    shown_time,
)
from hermitcrab_runner.rows import Row, parse_row
from hermitcrab_wire.limits import MAX_NESTING

MAIN = Destination(name="main", channel_type="terminal", platform_id="main")
TEAM = Destination(name="team", display_name="The team", channel_type="slack", platform_id="C1")
HELPER = Destination(name="helper", type="agent", agent_group_id="ag-1")
HEADER = '<context timezone="UTC" />\n'

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("text", "sender", "author", "replyTo", "attachments", "prompt", "scriptOutput", "payload", "source", "result")
CONTENT = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON
ANY_ROW = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=10)},
    optional={
        "kind": st.sampled_from(["chat", "chat-sdk", "task", "webhook", "system", "weather"]) | JSON,
        "content": CONTENT,
        "timestamp": st.sampled_from(["2026-11-23T09:10:00Z", "2026-11-23T09:10:00"]) | JSON,
        "seq": JSON,
        "trigger": JSON,
        "channel_type": JSON,
        "platform_id": JSON,
    },
)


def composed(*rows: Row, destinations: tuple[Destination, ...] = (MAIN,)) -> str:
    text = compose(rows, destinations, timezone="UTC", local_time=time.gmtime)
    assert text.startswith(HEADER)
    return text[len(HEADER) :]


def chat(text: object = "hello", **fields: Any) -> Row:
    content = {"text": text, "sender": "Ada", **fields.pop("content", {})}
    base: dict[str, Any] = {"id": "r1", "seq": 2, "kind": "chat", "timestamp": "2026-11-23T09:10:00.000Z"}
    where = {"channel_type": "terminal", "platform_id": "main"}
    found = parse_row({**base, **where, "content": content, **fields})
    assert found is not None
    return found


def test_one_chat_message() -> None:
    assert composed(chat()) == ('<message id="2" from="main" sender="Ada" time="Nov 23, 2026, 9:10 AM">hello</message>')


def test_several_rows_keep_their_order_whatever_their_kind() -> None:
    text = composed(chat("one"), chat(kind="task", content={"prompt": "two"}), chat("three", seq=6))
    lines = text.split("\n")
    assert (lines[0], lines[-1]) == ("<messages>", "</messages>")
    assert text.index("one") < text.index("two") < text.index("three")


def test_a_reply_shows_what_it_answers() -> None:
    reply = {"replyTo": {"id": 7, "sender": "Bo", "text": "is it <late>?"}}
    assert 'reply_to="7">\n  <quoted_message from="Bo">is it &lt;late&gt;?</quoted_message>\nyes' in composed(
        chat("yes", content=reply)
    )
    assert "quoted_message" not in composed(chat("yes", content={"replyTo": {"id": 7, "sender": "Bo"}}))


def test_attachments_follow_the_text() -> None:
    files = [
        {"type": "image", "name": "a<b>.png", "localPath": "inbox/r1/x"},
        {"filename": "b.txt", "url": "https://example.org/b"},
        {},
        "not a file",
    ]
    assert composed(chat("see", content={"attachments": files})).endswith(
        ">see\n[image: a&lt;b&gt;.png — saved to /workspace/inbox/r1/x]\n[file: b.txt (https://example.org/b)]\n"
        "[file: attachment]</message>"
    )


@pytest.mark.parametrize(
    ("content", "sender"),
    [
        ({"sender": "Ada"}, "Ada"),
        ({"author": {"fullName": "Ada L", "userName": "ada"}}, "Ada L"),
        ({"author": {"userName": "ada"}}, "ada"),
        ({}, "Unknown"),
        ({"sender": None, "author": "nobody"}, "Unknown"),
        ({"sender": 12}, "12"),
    ],
)
def test_the_sender_is_named_as_well_as_possible(content: dict[str, Any], sender: str) -> None:
    assert f'sender="{sender}"' in composed(Row("r", "chat", content))


def test_tasks_webhooks_and_answers_of_the_host() -> None:
    task = chat(kind="task", content={"prompt": "check <it>", "scriptOutput": {"n": 1}})
    assert composed(task) == (
        '<task from="main" time="Nov 23, 2026, 9:10 AM">Script output:\n{\n  &quot;n&quot;: 1\n}\n\n'
        "Instructions:\ncheck &lt;it&gt;</task>"
    )
    hook = Row("r", "webhook", {"source": "git", "payload": {"x": "</webhook>"}})
    assert composed(hook) == (
        '<webhook source="git" event="unknown">{\n  &quot;x&quot;: &quot;&lt;/webhook&gt;&quot;\n}</webhook>'
    )
    system = Row("r", "system", {"action": "install", "status": "ok", "result": [1]})
    assert composed(system) == '<system_response action="install" status="ok">[1]</system_response>'


def test_a_kind_of_the_future_is_shown_and_not_swallowed() -> None:
    assert "rainy" in composed(Row("r", "weather", {"now": "rainy"}))


@pytest.mark.parametrize(
    ("row", "origin"),
    [
        (Row("r", "chat", {}, channel_type="terminal", platform_id="main"), "main"),
        (Row("r", "chat", {}, channel_type="agent", platform_id="ag-1"), "helper"),
        (Row("r", "chat", {}, channel_type="terminal", platform_id="else"), "unknown:terminal:else"),
        (Row("r", "chat", {}, channel_type="terminal"), "unknown:terminal:"),
        (Row("r", "chat", {}), None),
    ],
)
def test_a_row_knows_its_destination(row: Row, origin: str | None) -> None:
    assert origin_of(row, (MAIN, TEAM, HELPER)) == origin


@pytest.mark.parametrize(
    ("timestamp", "shown"),
    [
        ("2026-11-23T09:10:00.000Z", "Nov 23, 2026, 9:10 AM"),
        ("2026-11-23T00:05:00+00:00", "Nov 23, 2026, 12:05 AM"),
        ("2026-11-23T12:00:00Z", "Nov 23, 2026, 12:00 PM"),
        ("2026-11-23T23:59:00-01:00", "Nov 24, 2026, 12:59 AM"),
        ("yesterday", "Invalid Date"),
        ("", "Invalid Date"),
        ("2026-13-01T00:00:00Z", "Invalid Date"),
    ],
)
def test_times_read_like_a_person_wrote_them(timestamp: str, shown: str) -> None:
    assert shown_time(timestamp, time.gmtime) == shown


@given(st.lists(ANY_ROW, max_size=4))
def test_no_row_breaks_the_prompt_or_writes_a_tag_of_its_own(messages: list[dict[str, Any]]) -> None:
    rows = [row for row in map(parse_row, messages) if row is not None]
    text = composed(*rows)
    allowed = {"messages", "message", "quoted_message", "task", "webhook", "system_response", "event"}
    assert set(re.findall(r"<([a-z_]+)", text)) <= allowed
    assert len(re.findall(r"<(?:message|task|webhook|system_response|event)[ >]", text)) == len(rows)


@given(st.text())
def test_what_is_escaped_reads_back_as_it_was(text: str) -> None:
    escaped = escape(text)
    assert not set(escaped) & set('<>"')
    printable = "".join(each for each in text if each.isprintable())
    assert ET.fromstring(f"<a>{escape(printable)}</a>").text == (printable or None)


def test_deep_nesting_is_not_shown() -> None:
    deep: Any = "x"
    for _ in range(MAX_NESTING):
        deep = [deep]
    assert "nested too deeply" not in composed(Row("r", "webhook", {"payload": deep}))
    assert "nested too deeply" in composed(Row("r", "webhook", {"payload": [deep]}))
    for _ in range(5000):
        deep = [deep]
    assert "nested too deeply" in composed(Row("r", "webhook", {"payload": deep}))


def test_instructions_name_the_destinations() -> None:
    none = instructions("", ())
    assert "no configured destinations" in none
    assert "# You are" not in none
    one = instructions("Crusty", (MAIN,))
    assert one.startswith("# You are Crusty\n")
    assert "`main`" in one
    several = instructions("Crusty", (MAIN, TEAM))
    assert "- `main`\n- `team` (The team)" in several
    assert '<message to="name">' in several
    assert "<internal>" in several


def test_the_model_hears_whom_it_cannot_reach() -> None:
    text = correction(["stranger"], (MAIN, TEAM))
    assert "`stranger`" in text
    assert "`main`, `team`" in text


def test_destinations_come_sorted_and_without_the_nameless() -> None:
    listed: list[dict[str, Any]] = [{"name": "b"}, {"name": None}, {}, {"name": "a", "type": "agent"}]
    assert [(each.name, each.type) for each in parse_destinations(listed)] == [("a", "agent"), ("b", "channel")]
