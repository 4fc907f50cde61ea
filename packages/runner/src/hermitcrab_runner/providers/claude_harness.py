"""One conversation with Claude Code: commands in, events out. Lives in the event loop of the provider's thread."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, assert_never

from hermitcrab_runner.logs import note
from hermitcrab_runner.providers import claude_options, claude_tools
from hermitcrab_runner.providers.base import Emit, Event, Failed, Forgotten, Prompt, ProviderSettings, Started
from hermitcrab_runner.providers.claude_events import STALE_SESSION, Translator

_SILENT_S = 30.0
"""A harness that says it owes no answer although one is outstanding may just not have read it yet. For so long."""

_INTERRUPT_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Configure:
    settings: ProviderSettings


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Interrupt:
    pass


@dataclass(frozen=True, slots=True)
class Forget:
    pass


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Command = Configure | Ask | Interrupt | Forget | Stop


class Harness:
    """`sdk` is the claude_agent_sdk module. Only `post` may be called from another thread."""

    def __init__(self, sdk: Any, port: int, settings: ProviderSettings, emit: Emit) -> None:
        self._sdk = sdk
        self._port = port
        self.settings = settings
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._posted: asyncio.Queue[Command] = asyncio.Queue()
        self._client: Any = None
        self._translator = Translator()
        self._outdated = False
        self._readers: Any = None
        self._silence: asyncio.TimerHandle | None = None

    def post(self, command: Command) -> None:
        self._loop.call_soon_threadsafe(self._posted.put_nowait, command)

    def left_over(self) -> Iterable[Command]:
        """After the end: fails what was begun, returns the commands that were never obeyed."""
        self._emit_all(self._translator.gone("the agent program failed"))
        while not self._posted.empty():
            yield self._posted.get_nowait()

    async def serve(self) -> None:
        """Obey commands until one says stop."""
        import anyio  # noqa: PLC0415  # comes with the SDK

        async with anyio.create_task_group() as self._readers:
            while not isinstance(command := await self._posted.get(), Stop):
                await self._obey(command)
            await self._disconnect()
            self._readers.cancel_scope.cancel()

    async def _obey(self, command: Configure | Ask | Interrupt | Forget) -> None:
        match command:
            case Configure():
                await self._configure(command.settings)
            case Ask():
                await self._ask(command.prompt)
            case Interrupt():
                await self._interrupt()
            case Forget():
                self.settings = self.settings._replace(continuation=None)
                await self._disconnect()
            case _:
                assert_never(command)

    async def _configure(self, settings: ProviderSettings) -> None:
        if self._client is None:
            self.settings = settings
            await self._connect()  # Warm before the first prompt is here.
        else:
            # This process knows which conversation it is in, whatever the host had on disk.
            settings = settings._replace(continuation=self.settings.continuation)
            self._outdated = self._outdated or settings != self.settings
            self.settings = settings

    async def _ask(self, prompt: Prompt) -> None:
        if self._outdated and not self._translator.outstanding:
            await self._disconnect()
        if self._client is None and not await self._connect():
            self._emit(Failed("the agent program did not start", (prompt.key,)))
            return
        uuid = _random_uuid()
        self._translator.asked(uuid, prompt.key)
        message = {"type": "user", "message": {"role": "user", "content": prompt.text}, "parent_tool_use_id": None}
        try:
            await self._client.query(_one({**message, "uuid": uuid}))
        except Exception as error:  # noqa: BLE001  # the SDK has no common error; its reader tells what becomes of it
            note("claude.not-asked", error=error)

    async def _interrupt(self) -> None:
        import anyio  # noqa: PLC0415

        client, translator = self._client, self._translator
        if client is None or not translator.outstanding:
            return
        try:
            with anyio.fail_after(_INTERRUPT_WITHIN_S):
                await client.interrupt()
        except Exception as error:  # noqa: BLE001  # as above; whatever it was, it goes on working and must not
            note("claude.not-interrupted", error=error)
            await self._disconnect()
            self._emit_all(translator.gone("it did not stop when it was told to"))

    async def _connect(self) -> bool:
        """Start the harness, in the old conversation if that still exists."""
        reason = await self._try_to_connect()
        if reason is not None and self.settings.continuation is not None and STALE_SESSION.search(reason):
            note("claude.session-stale")
            self.settings = self.settings._replace(continuation=None)
            self._emit(Forgotten())
            reason = await self._try_to_connect()
        if reason is not None:
            note("claude.not-started", reason=reason)
        return reason is None

    async def _try_to_connect(self) -> str | None:
        """None, or why it did not start."""
        last_words: deque[str] = deque(maxlen=5)

        def on_stderr(line: str) -> None:
            last_words.append(line)
            note("claude.stderr", line=line[:500])

        tools = claude_tools.server(self._sdk, self._emit)
        options = claude_options.options(self.settings, port=self._port, root=os.geteuid() == 0, tools=tools)
        try:
            client = self._sdk.ClaudeSDKClient(self._sdk.ClaudeAgentOptions(**options, stderr=on_stderr))
            await client.connect()
        except Exception as error:  # noqa: BLE001  # the SDK has no common error; the caller decides by the words
            return "; ".join([str(error), *last_words])
        self._client, self._translator, self._outdated = client, Translator(), False
        self._readers.start_soon(self._read, client, self._translator)
        return None

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.disconnect()

    async def _read(self, client: Any, translator: Translator) -> None:
        try:
            async for message in client.receive_messages():
                for event in translator.take(message):
                    if isinstance(event, Started):
                        self.settings = self.settings._replace(continuation=event.continuation)
                    self._emit(event)
                self._consider(translator)
        except Exception as error:  # noqa: BLE001  # it died, or says what nobody understands: a new one takes over
            note("claude.died", error=error)
        if self._client is client:
            await self._disconnect()
            self._emit_all(translator.gone("the agent program ended"))

    def _consider(self, translator: Translator) -> None:
        """After each message: give up what is hopeless, and notice an answer that never comes."""
        if translator.should_interrupt():
            self._posted.put_nowait(Interrupt())
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if translator.idle and translator.outstanding:
            self._silence = self._loop.call_later(_SILENT_S, self._fell_silent, translator)

    def _fell_silent(self, translator: Translator) -> None:
        if translator is self._translator and translator.idle:
            self._emit_all(translator.gone("the agent program ended its turn without an answer"))

    def _emit_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._emit(event)


async def _one(message: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield message


def _random_uuid() -> str:
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
