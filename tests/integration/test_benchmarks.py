"""Each benchmark once, as small as it gets: that it runs, what it tells, and what must hold at any size. Never times."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from hermitcrab_bench import adopt, fuzz, history, isolation, stop, storm, thaw, throughput
from hermitcrab_bench.lag import with_missed
from hermitcrab_bench.throughput import fairness

NeedEngine = Callable[[str], Mapping[str, str]]


async def test_thaw(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await thaw.run(runs=4, sessions=2)
    assert found["runs"] == 4
    assert found["duplicates"] == found["restarted"] == 0
    assert 0 < found["thaw_p50_ms"] <= found["p50_ms"] <= found["p99_ms"]
    assert found["p50_ms"] <= found["answer_max_ms"]
    assert found["frozen_cpu_ms"] == 0.0


async def test_adopt(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await adopt.run(sessions=2)
    assert found["ready"] == found["live"] == found["sessions"] == 2
    assert found["lost"] == found["duplicates"] == found["left"] == found["exit_code"] == 0
    assert found["adopt_ms"] > 0


async def test_storm(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await storm.run(wakes=20, sessions=2)
    assert found["wakes"] == 22
    assert found["same_session_containers"] == found["same_session"]["most_at_once"] == 1
    assert found["containers"] == 3
    assert found["duplicates"] == found["failed"] == found["left"] == 0
    assert (
        sum(found["same_session"]["outcomes"].values()) == sum(found["same_session"]["outcomes_there"].values()) == 10
    )
    assert found["starts_at_once"] <= found["starts_allowed"]
    assert found["loop_lag_p99_ms"] >= 0


async def test_fuzz(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await fuzz.run(frames=20_000, messages=20)
    assert found["frames"] >= 20_000
    assert found["refused"] > 0
    assert (found["crashes"], found["errors"]) == (0, [])
    assert found["fds_growth"] <= 0
    assert found["tasks_growth"] <= 0


async def test_stop(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await stop.run(sessions=2)
    assert found["running"] == found["sessions"] == 2
    assert found["left"] == 0
    assert 0 <= found["over_grace_ms"] <= found["stop_ms"]


async def test_throughput(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await throughput.run(sessions=2, messages=5)
    assert found["wrong"] == found["duplicates"] == 0
    assert found["messages_per_s"] > 0
    assert 0 < found["slowest_share"] <= 1
    assert 0 < found["fairness"] <= 1


async def test_history(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    found = await history.run(past=200, messages=4)
    assert (found["past"], found["messages"]) == (200, 4)
    assert found["ratio"] == pytest.approx(found["with_history"]["p50_ms"] / found["without"]["p50_ms"], rel=0.1)


async def test_isolation() -> None:
    found = await isolation.run(sessions=6, rounds=2)
    assert found["answered"] == 2 * 2 * 3, "every good one answered in every round"
    assert found["rounds_with_damage"] == 2
    assert found["messages_to_the_bad"] > 0
    assert found["p99_ratio"] > 0


def test_a_loop_that_stood_still_is_charged_for_the_samples_it_missed() -> None:
    assert with_missed(0.0, 0.005) == [0.0]
    assert with_missed(-0.001, 0.005) == [0.0]
    assert with_missed(0.012, 0.005) == pytest.approx([12.0, 7.0, 2.0])


def test_fairness_tells_of_one_session_that_waits() -> None:
    assert fairness([2.0, 2.0, 2.0], 10) == {"fairness": 1.0, "slowest_share": 1.0}
    unfair = fairness([1.0, 1.0, 10.0], 10)
    assert unfair["slowest_share"] == pytest.approx(0.1)
    assert unfair["fairness"] < 0.8
