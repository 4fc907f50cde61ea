"""The scripted model: it speaks the service's dialect, keeps to its script and records what it was asked."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx2
import pytest

from hermitcrab.testing.scripted_model import Request, Turn, fail, say, scripted_model, use_tool

TOOLS = [{"name": "Bash", "input_schema": {"type": "object"}}]


def body(text: str = "hi", *, stream: bool = False, tools: bool = True) -> dict[str, Any]:
    return {
        "model": "claude-test",
        "max_tokens": 10,
        "stream": stream,
        "messages": [{"role": "user", "content": text}],
        "tools": TOOLS if tools else [],
    }


async def ask(url: str, message: dict[str, Any]) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await client.post(f"{url}/anthropic/v1/messages?beta=true", json=message, headers={"X-Api-Key": "k"})


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in found]
    return found


async def test_a_whole_answer() -> None:
    async with scripted_model([say("hel", "lo")]) as model:
        answer = (await ask(model.url, body())).json()
        assert answer["content"] == [{"type": "text", "text": "hello"}]
        assert answer["stop_reason"] == "end_turn"
        assert answer["model"] == "claude-test"


async def test_a_streamed_answer_comes_in_its_parts() -> None:
    async with scripted_model([say("hel", "lo")]) as model:
        response = await ask(model.url, body(stream=True))
        assert response.headers["content-type"] == "text/event-stream"
        found = events(response)
        assert [each["type"] for each in found] == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert "".join(each["delta"]["text"] for each in found[2:4]) == "hello"


async def test_a_tool_is_asked_for_after_some_words() -> None:
    async with scripted_model([use_tool("Bash", {"command": "ls"}, before="Look:")] * 2) as model:
        whole = (await ask(model.url, body())).json()
        assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
        assert whole["content"][1]["input"] == {"command": "ls"}
        assert whole["stop_reason"] == "tool_use"
        deltas = [each["delta"] for each in events(await ask(model.url, body(stream=True))) if "delta" in each]
        assert json.loads(deltas[1]["partial_json"]) == {"command": "ls"}


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (529, "overloaded_error"), (500, "api_error")])
async def test_a_failure_looks_like_the_services(status: int, kind: str) -> None:
    async with scripted_model([fail(status, "no", retry_after="3")]) as model:
        response = await ask(model.url, body())
        assert response.status_code == status
        assert response.json()["error"] == {"type": kind, "message": "no"}
        assert response.headers["retry-after"] == "3"


async def test_requests_are_recorded_with_their_key_and_texts() -> None:
    async with scripted_model([say("ok")]) as model:
        message = body("first")
        message["messages"].append({"role": "user", "content": [{"type": "tool_result", "content": "out"}]})
        await ask(model.url, message)
        (request,) = await model.asked_times(1)
        assert request.headers["x-api-key"] == "k"
        assert request.texts == ["first", "out"]
        assert request.body["model"] == "claude-test"


async def test_an_answer_waits_until_the_test_lets_it_go() -> None:
    release = anyio.Event()
    async with scripted_model([say("now", after=release)]) as model, anyio.create_task_group() as group:
        answers: list[str] = []

        async def wait() -> None:
            answers.append((await ask(model.url, body())).json()["content"][0]["text"])

        group.start_soon(wait)
        await model.asked_times(1)
        assert answers == []
        release.set()
    assert answers == ["now"]


async def test_side_requests_take_no_turn_of_the_script() -> None:
    async with scripted_model([say("first")]) as model:
        assert (await ask(model.url, body(tools=False))).json()["content"][0]["text"] == "ok"
        async with httpx2.AsyncClient(trust_env=False) as client:
            count = await client.post(f"{model.url}/v1/messages/count_tokens", json=body())
            assert count.json() == {"input_tokens": 10}
            assert (await client.head(model.url)).status_code == 200
            assert (await client.get(f"{model.url}/api/hello")).status_code == 200
        assert (await ask(model.url, body())).json()["content"][0]["text"] == "first"
        assert len(model.asked) == 1
        assert len(model.requests) == 5


async def test_a_script_that_is_over_fails_loudly() -> None:
    async with scripted_model([]) as model:
        response = await ask(model.url, body())
        assert response.status_code == 400
        assert "no further turn" in response.text


async def test_a_function_may_decide() -> None:
    def script(request: Request) -> Turn:
        return say(request.texts[-1].upper())

    async with scripted_model(script) as model:
        assert (await ask(model.url, body("shout"))).json()["content"][0]["text"] == "SHOUT"
