"""The turn loop as an actor: what it sends for what happens, with a provider that answers when told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab_runner.link import Pulse
from hermitcrab_runner.providers import base
from hermitcrab_runner.providers.echo import EchoProvider
from hermitcrab_runner.surroundings import Surroundings
from hermitcrab_runner.turn import KEPT_CONTEXT, Terminated, Tick, TurnLoop
from hermitcrab_wire import frames
from hermitcrab_wire.codec import encode
from hermitcrab_wire.limits import PROTOCOL

MAIN = {"name": "main", "type": "channel", "channel_type": "terminal", "platform_id": "main"}
TEAM = {"name": "team", "type": "channel", "channel_type": "slack", "platform_id": "C1"}


class PuppetProvider:
    """Does nothing by itself; the test answers for it."""

    native_commands = frozenset({"/compact"})

    def __init__(self, *, takes_follow_ups: bool = True) -> None:
        self.takes_follow_ups = takes_follow_ups
        self.prompts: list[base.Prompt] = []
        self.configured: list[base.ProviderSettings] = []
        self.interrupts = 0
        self.forgotten = 0

    def configure(self, settings: base.ProviderSettings) -> None:
        self.configured.append(settings)

    def ask(self, prompt: base.Prompt) -> None:
        self.prompts.append(prompt)

    def interrupt(self) -> None:
        self.interrupts += 1

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        """It has nothing to close."""


class Play:
    """A loop, its provider and what it sent; `welcome` first, as on a real link."""

    def __init__(
        self, *, takes_follow_ups: bool = True, destinations: Sequence[dict[str, Any]] = (MAIN,), **config: Any
    ) -> None:
        self.provider = PuppetProvider(takes_follow_ups=takes_follow_ups)
        self.sent: list[frames.Frame] = []
        self.pulse = Pulse()
        self.now = 1000.0
        self.loop = TurnLoop(
            send=self._send,
            show=self._show,
            provider=self.provider,
            surroundings=Surroundings("puppet", base.ProviderSettings(), generation=1),
            clock=lambda: self.now,
        )
        self.welcome(destinations, **config)

    def _send(self, frame: frames.Frame) -> None:
        encode(frame.to_json())  # Nothing that the link could not carry.
        self.sent.append(frame)

    def _show(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def welcome(
        self, destinations: Sequence[dict[str, Any]] = (MAIN,), state: dict[str, str] | None = None, **config: Any
    ) -> None:
        self.loop.handle(
            frames.Welcome(
                protocol=PROTOCOL,
                generation=1,
                session="s",
                config=config,
                destinations=list(destinations),
                state=state or {},
            )
        )

    def receive(self, *rows: dict[str, Any]) -> None:
        self.loop.handle(frames.Inbound(rows=list(rows)))

    def answer(self, text: str, *prompts: int) -> None:
        """The provider's result for the prompts with these numbers; without any, for the last one."""
        keys = tuple(self.provider.prompts[number].key for number in prompts or (-1,))
        self.loop.handle(base.Result(text, keys))

    def fail(self, reason: str, prompt: int = -1, *, cancelled: bool = False) -> None:
        self.loop.handle(base.Failed(reason, (self.provider.prompts[prompt].key,), cancelled=cancelled))

    def acknowledge(self) -> None:
        for frame in [frame for frame in self.sent if isinstance(frame, frames.Complete)]:
            self.loop.handle(frames.Completed(turn=frame.turn))

    def of_kind(self, kind: type[frames.Frame]) -> list[Any]:
        return [frame for frame in self.sent if isinstance(frame, kind)]

    @property
    def completions(self) -> list[tuple[list[str], list[str], str | None]]:
        """Ids, texts and reason of every completion."""
        return [(f.ids, [out["content"]["text"] for out in f.outs], f.failed) for f in self.of_kind(frames.Complete)]


def row(key: str, text: object = "hello", *, trigger: bool = True, **fields: Any) -> dict[str, Any]:
    where = {"channel_type": "terminal", "platform_id": "main"}
    return {"id": key, "kind": "chat", "trigger": trigger, "content": {"text": text}, **where, **fields}


def test_a_row_is_claimed_asked_answered_and_completed() -> None:
    play = Play()
    play.receive(row("r1"))
    (claim,) = play.of_kind(frames.Claim)
    assert claim.ids == ["r1"]
    assert play.pulse.activity == "thinking"
    assert play.completions == []
    play.answer("hi")
    (complete,) = play.of_kind(frames.Complete)
    assert complete.turn == claim.turn
    assert complete.outs[0]["in_reply_to"] == "r1"
    assert play.completions == [(["r1"], ["hi"], None)]
    assert list(play.loop.held) == ["r1"], "the host has not said yet that it is on disk"
    play.acknowledge()
    assert not play.loop.held
    assert play.pulse.activity == "idle"


def test_rows_are_taken_oldest_first_up_to_the_limit() -> None:
    """The earlier system took the newest first, and the oldest waited a minute."""
    play = Play(takes_follow_ups=False, max_messages_per_prompt=10)
    play.receive(*(row(f"r{number}") for number in range(25)))
    for _ in range(3):
        play.answer("ok")
    assert [len(ids) for ids, _, _ in play.completions] == [10, 10, 5]
    assert [key for ids, _, _ in play.completions for key in ids] == [f"r{number}" for number in range(25)]


def test_context_waits_for_a_row_that_triggers_and_rides_along() -> None:
    play = Play()
    play.receive(row("c1", "rain", trigger=False))
    assert play.sent == []
    play.receive(row("r1", "and now?"))
    assert play.of_kind(frames.Claim)[0].ids == ["c1", "r1"]
    assert "rain" in play.provider.prompts[0].text
    assert play.provider.prompts[0].plain == "and now?"
    play.receive(row("c2", trigger=False))
    assert len(play.provider.prompts) == 1, "context is not answered while a turn runs, either"


def test_context_beyond_the_limit_still_rides_along_with_its_trigger() -> None:
    play = Play(max_messages_per_prompt=2)
    play.receive(*(row(f"c{number}", trigger=False) for number in range(5)), row("r1"), row("r2"))
    assert [claim.ids for claim in play.of_kind(frames.Claim)] == [[*(f"c{n}" for n in range(5)), "r1"], ["r2"]]


def test_old_context_makes_room_for_the_row_that_triggers() -> None:
    play = Play()
    play.receive(*(row(f"c{number}", trigger=False) for number in range(KEPT_CONTEXT + 3)))
    assert [ids for ids, _, _ in play.completions] == [["c0", "c1", "c2"]]
    assert play.completions[0][1] == []


def test_a_row_that_ended_containers_is_worked_on_alone() -> None:
    play = Play()
    play.receive(row("r1"), row("r2", tries=1), row("bad", tries=2), row("r3"))
    assert [claim.ids for claim in play.of_kind(frames.Claim)] == [["r1", "r2"]]
    play.answer("fine")
    assert [claim.ids for claim in play.of_kind(frames.Claim)] == [["r1", "r2"], ["bad"]]
    play.receive(row("r4"))
    play.answer("fine, too")
    assert [claim.ids for claim in play.of_kind(frames.Claim)] == [["r1", "r2"], ["bad"], ["r3", "r4"]]


def test_a_row_that_comes_twice_is_worked_on_once() -> None:
    play = Play()
    play.receive(row("r1"), row("r1"))
    play.receive(row("r1"))
    play.answer("hi")
    play.receive(row("r1"))
    play.acknowledge()
    play.receive(row("r1"))
    assert len(play.provider.prompts) == 1


def test_a_follow_up_is_asked_at_once_and_completed_with_its_own_result_only() -> None:
    play = Play()
    play.receive(row("r1"))
    play.receive(row("r2"))
    assert len(play.provider.prompts) == 2
    play.answer("one", 0)
    assert play.completions == [(["r1"], ["one"], None)]
    play.answer("two", 1)
    assert play.completions[1:] == [(["r2"], ["two"], None)]


def test_one_result_may_answer_several_prompts() -> None:
    play = Play()
    play.receive(row("r1"))
    play.receive(row("r2"))
    play.answer("both", 0, 1)
    assert play.completions == [(["r1", "r2"], ["both"], None)]
    assert play.of_kind(frames.Complete)[0].outs[0]["in_reply_to"] == "r2"


def test_a_provider_without_follow_ups_is_asked_when_it_is_free() -> None:
    play = Play(takes_follow_ups=False)
    play.receive(row("r1"))
    play.receive(row("r2"))
    assert len(play.provider.prompts) == 1
    play.answer("one")
    assert len(play.provider.prompts) == 2


def test_the_same_rows_have_the_same_ids_in_another_process() -> None:
    def one() -> tuple[str, list[str]]:
        play = Play(destinations=[MAIN, TEAM])
        play.receive(row("r1"))
        play.answer('<message to="team">a</message><message to="team">a</message><message to="main">a</message>')
        (complete,) = play.of_kind(frames.Complete)
        return complete.turn, [out["id"] for out in complete.outs]

    assert one() == one()
    assert len(set(one()[1])) == 3


def test_an_answer_to_a_chat_that_asked_goes_by_the_row_so_that_its_thread_is_found() -> None:
    play = Play(destinations=[MAIN, TEAM])
    team = {"channel_type": "slack", "platform_id": "C1", "thread_id": "T9"}
    play.receive(row("r1"), row("r2", **team), row("r3"))
    play.answer('<message to="team">a</message><message to="main">b</message>')
    (complete,) = play.of_kind(frames.Complete)
    assert [(out.get("to"), out.get("in_reply_to")) for out in complete.outs] == [(None, "r2"), (None, "r3")]


def test_clear_forgets_the_conversation_in_its_turn() -> None:
    play = Play(state={"continuation:puppet": "old"})
    assert play.provider.configured[0].continuation == "old"
    play.receive(row("r1"))
    play.receive(row("c1", trigger=False), row("r2", "/clear"), row("r3", "after"))
    assert play.provider.forgotten == 0, "the turn that runs comes first"
    play.answer("one")
    assert play.provider.forgotten == 1
    (state,) = play.of_kind(frames.SetState)
    assert (state.key, state.value) == ("continuation:puppet", None)
    assert play.completions[1] == (["c1", "r2"], ["Session cleared."], None)
    assert play.provider.prompts[1].plain == "after"


def test_a_word_that_only_begins_like_clear_is_a_message() -> None:
    play = Play()
    play.receive(row("r1", "/clearance sale?"))
    assert play.provider.forgotten == 0
    assert play.provider.prompts[0].plain == "/clearance sale?"


def test_a_native_command_is_a_prompt_of_its_own_and_raw() -> None:
    play = Play()
    play.receive(row("r1", "hello"), row("r2", "/compact now"), row("r3", "more"))
    play.answer("one")
    assert play.provider.prompts[1].text == "/compact now"
    play.answer("compacted", 1)
    assert [ids for ids, _, _ in play.completions] == [["r1"], ["r2"]]
    assert play.provider.prompts[2].plain == "more"


def test_a_failure_is_one_plain_sentence_and_ends_the_rows() -> None:
    play = Play()
    play.receive(row("r1"))
    play.fail("the model's service is overloaded")
    assert play.completions == [
        (["r1"], ["I could not answer: the model's service is overloaded."], "the model's service is overloaded")
    ]


def test_cancel_interrupts_and_says_so() -> None:
    play = Play()
    play.receive(row("r1"))
    play.loop.handle(frames.Cancel(reason="stop"))
    assert play.provider.interrupts == 1
    play.fail("it was interrupted", cancelled=True)
    assert play.completions[0][1] == ["I was stopped before I had finished this."]


def test_prompts_that_were_given_back_are_asked_again_before_what_came_later() -> None:
    play = Play(max_messages_per_prompt=1)
    play.receive(row("r1"), row("r2"))
    play.fail("the agent program ended", 0)
    play.loop.handle(base.GivenBack((play.provider.prompts[1].key,)))
    assert play.provider.prompts[2].plain == "hello"
    play.answer("two", 2)
    assert [ids for ids, _, _ in play.completions] == [["r1"], ["r2"]]


def test_words_for_a_stranger_are_reported_back_once_and_then_left_out() -> None:
    play = Play(destinations=[MAIN, TEAM])
    play.receive(row("r1"))
    wrong = '<message to="stranger">secret</message>'
    play.answer(f'{wrong}<message to="team">fine</message>')
    assert play.completions == []
    assert [out.content["text"] for out in play.of_kind(frames.Out)] == ["fine"]
    assert "`stranger`" in play.provider.prompts[1].text
    play.answer(wrong)
    assert play.completions == [
        (["r1"], ["Part of my answer was for somebody I cannot write to, and was not sent."], None)
    ]
    assert any("secret" in log.text for log in play.of_kind(frames.Log))


def test_words_that_answer_nothing_are_said_all_the_same() -> None:
    play = Play()
    play.loop.handle(base.Result("the build is green", (), key="result-1"))
    assert [out.content["text"] for out in play.of_kind(frames.Out)] == ["the build is green"]


def test_a_long_answer_goes_in_pieces_that_fit() -> None:
    play = Play(destinations=[MAIN, TEAM])
    play.receive(row("r1"))
    blocks = "".join(f'<message to="team">{number}</message>' for number in range(40))
    play.answer(f"{blocks}<message>{'long ' * 400_000}</message>")
    outs = [out.to_json() for out in play.of_kind(frames.Out)] + play.of_kind(frames.Complete)[0].outs
    texts = [out["content"]["text"] for out in outs]
    assert texts[:40] == [str(number) for number in range(40)]
    assert "".join(texts[40:]).split() == ["long"] * 400_000
    assert len({out["id"] for out in outs}) == len(outs)


def test_a_refused_completion_gives_up_its_words_before_its_rows() -> None:
    play = Play()
    play.receive(row("r1"))
    play.answer("hi")
    turn = play.of_kind(frames.Complete)[0].turn
    for _ in range(2):
        play.loop.handle(frames.Refused(code="too-large", text="no", id=turn))
    assert play.completions[1:] == [
        (["r1"], ["I had an answer, but it could not be passed on (too-large)."], "refused: too-large"),
        (["r1"], [], "refused: too-large"),
    ]
    play.loop.handle(frames.Refused(code="too-large", text="no", id=turn))
    assert not play.loop.held
    assert len(play.completions) == 3


def test_a_chat_hears_once_that_a_part_is_missing() -> None:
    play = Play(destinations=[MAIN, TEAM])
    play.receive(row("r1"))
    play.loop.handle(base.Progress('<message to="team">a</message><message to="team">b</message>'))
    for out in play.of_kind(frames.Out):
        play.loop.handle(frames.Refused(code="unknown-destination", text="gone", id=out.id))
    assert [out.content["text"] for out in play.of_kind(frames.Out)] == [
        "a",
        "b",
        "Part of my answer could not be passed on.",
    ]


def test_beats_tell_the_tool_that_takes_longest() -> None:
    play = Play()
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "Bash", 60.0))
    play.loop.handle(base.ToolBegan("t2", "Read"))
    assert (play.pulse.activity, play.pulse.detail, play.pulse.until) == ("tool", "Bash", 1060.0)
    play.loop.handle(base.ToolEnded("t1"))
    assert play.pulse.detail == "Read"
    play.loop.handle(base.ToolEnded("t2"))
    assert play.pulse.activity == "thinking"


def test_a_limit_of_the_model_shows_until_the_model_goes_on() -> None:
    play = Play()
    play.receive(row("r1"))
    play.loop.handle(base.Waiting("HTTP 429", 20.0))
    assert (play.pulse.activity, play.pulse.until) == ("rate-limited", 1020.0)
    play.loop.handle(base.Working())
    assert play.pulse.activity == "thinking"
    play.loop.handle(base.Waiting("HTTP 429", 20.0))
    play.now = play.loop.deadline or 0.0
    play.loop.handle(Tick())
    assert (play.now, play.pulse.activity, play.loop.deadline) == (1020.0, "thinking", None)


def test_a_tool_that_overstays_is_interrupted_once() -> None:
    play = Play()
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "Bash", 60.0))
    assert play.loop.deadline == 1090.0
    play.now = 1089.0
    play.loop.handle(Tick())
    assert play.provider.interrupts == 0
    play.now = 1090.0
    play.loop.handle(Tick())
    play.loop.handle(Tick())
    assert play.provider.interrupts == 1
    assert [(each.tool, each.after_ms) for each in play.of_kind(frames.ToolStopped)] == [("Bash", 90_000)]


def test_the_chat_hears_which_tool_was_stopped_and_the_next_turn_is_its_own() -> None:
    play = Play(tool_timeout_s=5, tool_grace_s=1)
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "mcp__mail__send"))
    play.now += 5
    play.loop.handle(Tick())
    play.fail("it was interrupted", cancelled=True)
    (complete,) = play.of_kind(frames.Complete)
    sentence = "the tool mcp__mail__send was stopped, as it had not ended after 5 s"
    assert complete.outs[0]["content"]["text"] == f"I could not answer: {sentence}."
    assert complete.failed == sentence
    play.receive(row("r2"))
    play.fail("it was interrupted", cancelled=True)
    assert play.of_kind(frames.Complete)[1].outs[0]["content"]["text"] == "I was stopped before I had finished this."


def test_a_tool_that_says_nothing_of_its_time_may_go_on_while_anything_happens() -> None:
    play = Play(tool_timeout_s=100)
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "Search"))
    for _ in range(20):
        play.now += 90
        play.loop.handle(base.Working())
        play.loop.handle(Tick())
    assert play.provider.interrupts == 0
    play.now += 100
    play.loop.handle(Tick())
    assert play.provider.interrupts == 1


@pytest.mark.parametrize(("said_s", "after_s"), [(10.0, 15), (1e12, 100), (98.0, 100)])
def test_what_a_tool_says_of_its_time_counts_up_to_the_longest(said_s: float, after_s: float) -> None:
    play = Play(tool_timeout_s=100, tool_grace_s=5)
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "Bash", said_s))
    assert play.loop.deadline == 1000.0 + after_s
    assert play.pulse.until is not None
    assert play.pulse.until <= 1100.0


@pytest.mark.parametrize("limits", [{}, {"tool_timeout_s": "soon", "tool_grace_s": -1}, {"tool_timeout_s": 10**400}])
def test_limits_that_make_no_sense_are_the_usual_ones(limits: dict[str, Any]) -> None:
    play = Play(**limits)
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "Bash", 60.0))
    assert play.loop.deadline == 1090.0


def test_neither_a_helper_that_thinks_nor_a_model_that_makes_us_wait_stops_a_turn() -> None:
    play = Play(tool_timeout_s=100)
    play.receive(row("r1"))
    play.loop.handle(base.ToolBegan("t1", "Task", is_agent=True))
    assert play.loop.deadline is None
    play.loop.handle(base.ToolBegan("t2", "Search"))
    play.loop.handle(base.Waiting("limit five_hour", 18_000.0))
    play.now += 18_000
    play.loop.handle(Tick())
    assert play.provider.interrupts == 0


def test_a_drain_finishes_the_turn_and_takes_no_more() -> None:
    play = Play()
    play.receive(row("r1"))
    play.loop.handle(frames.Drain(within_ms=5000))
    play.receive(row("r2"))
    assert len(play.provider.prompts) == 1
    play.answer("one")
    assert not play.loop.finished, "the answer is not on the host's disk yet"
    play.acknowledge()
    assert play.loop.finished
    assert play.of_kind(frames.Bye)[0].reason == "drained; 1 rows given back"


def test_a_drain_that_takes_too_long_gives_the_rows_back() -> None:
    play = Play()
    play.receive(row("r1"))
    play.loop.handle(frames.Drain(within_ms=5000))
    play.now += 5.0
    play.loop.handle(Tick())
    assert play.loop.finished
    assert play.completions == []


def test_an_idle_runner_that_is_told_to_end_ends() -> None:
    play = Play()
    play.loop.handle(Terminated())
    assert play.loop.finished


def test_a_new_continuation_is_kept_and_an_old_one_is_not_sent_again() -> None:
    play = Play(state={"continuation:puppet": "a"})
    for continuation in ("a", "b", "b"):
        play.loop.handle(base.Started(continuation))
    play.loop.handle(base.Forgotten())
    assert [(state.key, state.value) for state in play.of_kind(frames.SetState)] == [
        ("continuation:puppet", "b"),
        ("continuation:puppet", None),
    ]


def test_a_second_welcome_configures_only_what_changed() -> None:
    play = Play()
    play.welcome()
    assert len(play.provider.configured) == 1
    play.welcome([MAIN, TEAM])
    assert len(play.provider.configured) == 2
    assert "`team`" in play.provider.configured[1].instructions


@pytest.mark.parametrize("content", [None, 7, [], {"text": None}, {"text": {"a": 1}}, {"sender": 5}, "\ud800"])
def test_malformed_rows_are_answered_like_any_other(content: object) -> None:
    play = Play()
    play.receive({"id": "r1", "content": content}, {"content": "no id"}, {})
    play.answer("\ud83e?")
    assert play.completions == [(["r1"], ["�?"], None)]


STEPS = st.lists(
    st.sampled_from(["row", "context", "clear", "compact", "result", "merge", "fail", "give-back", "twice", "ack"]),
    max_size=40,
)


@given(STEPS, st.booleans())
@settings(max_examples=300)
def test_every_row_is_completed_exactly_once_and_never_before_an_answer(steps: list[str], follow_ups: bool) -> None:
    play = Play(takes_follow_ups=follow_ups, max_messages_per_prompt=3)
    pushed: list[str] = []
    texts = {"clear": "/clear", "compact": "/compact"}

    def open_prompts() -> list[str]:
        return list(play.loop._state.asked)

    def settle(step: str) -> None:
        keys = open_prompts()
        if not keys:
            return
        if step == "merge":
            play.loop.handle(base.Result("both", tuple(keys[:2])))
        elif step == "fail":
            play.loop.handle(base.Failed("no", (keys[0],)))
        elif step == "give-back":
            play.loop.handle(base.GivenBack((keys[-1],)))
        else:
            play.loop.handle(base.Result("ok", (keys[0],)))

    for number, step in enumerate(steps):
        completed = len(play.completions)
        match step:
            case "row" | "context" | "clear" | "compact":
                pushed.append(f"r{number}")
                play.receive(row(pushed[-1], texts.get(step, "hello"), trigger=step != "context"))
                assert all(outs in ([], ["Session cleared."]) for _, outs, _ in play.completions[completed:])
            case "twice" if pushed:
                play.receive(row(pushed[len(pushed) // 2]))
            case "ack":
                play.acknowledge()
            case _:
                settle(step)
    pushed.append("last")
    play.receive(row("last"))
    while open_prompts():
        settle("result")
    completed_ids = [key for ids, _, _ in play.completions for key in ids]
    assert sorted(completed_ids) == sorted(pushed)
    outs = [out["id"] for frame in play.of_kind(frames.Complete) for out in frame.outs]
    assert len(set(outs)) == len(outs)


def test_echo_repeats_the_words_of_those_who_asked() -> None:
    events: list[base.Event] = []
    provider = EchoProvider(events.append)
    provider.ask(base.Prompt("p1", "<xml/>", "one\ntwo"))
    provider.ask(base.Prompt("p2", "<xml/>", ""))
    assert events == [base.Result("Echo: one\ntwo", ("p1",)), base.Result("Echo: ", ("p2",))]


def test_echo_can_be_interrupted_while_it_sleeps_and_answers_what_came_after() -> None:
    events: list[base.Event] = []
    provider = EchoProvider(events.append)
    provider.ask(base.Prompt("p1", "", "/sleep 100"))
    provider.ask(base.Prompt("p2", "", "hi"))
    assert events == []
    provider.interrupt()
    assert isinstance(events[0], base.Failed)
    assert events[0].cancelled
    assert events[1:] == [base.Result("Echo: hi", ("p2",))]
    provider.interrupt()
    assert len(events) == 2
