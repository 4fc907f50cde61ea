"""The port between the turn loop and an agent harness.

The loop asks; the provider answers with events, from whichever thread it likes, through the `emit` that it was made
with. It never blocks the loop, and never raises into it: what goes wrong is a `Failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol


class Prompt(NamedTuple):
    """Something to answer. `key` comes back in the events that answer it."""

    key: str
    text: str
    """As a model reads it."""
    plain: str = ""
    """Only the words of the people who want an answer."""


class Started(NamedTuple):
    """A conversation that can be resumed by this token, in a later container, too."""

    continuation: str


class Forgotten:
    """The conversation that was to be resumed is gone; a new one begins."""


class ToolBegan(NamedTuple):
    key: str
    name: str
    timeout_s: float | None = None
    """How long the tool says that it may take."""
    is_agent: bool = False
    """It asks a model or a person: as neither is too slow, it is never interrupted. The tools of its own are."""


class ToolEnded(NamedTuple):
    key: str


class ToolCall(NamedTuple):
    """The agent uses one of the tools that we give it (`tools/catalogue.py`)."""

    name: str
    arguments: Mapping[str, Any]
    answer: Callable[[str, bool], None]
    """Takes the tool's reply, and whether it failed. Called once, from the turn loop's thread."""


class Waiting(NamedTuple):
    """The model's service makes us wait."""

    detail: str
    seconds: float


class Working:
    """The model goes on."""


class Progress(NamedTuple):
    """Words in mid-turn, before the model goes on to a tool. Only addressed blocks in them are sent."""

    text: str


class Result(NamedTuple):
    """The model's answer to the prompts `answered`, all of which it had taken in before it gave it."""

    text: str
    answered: tuple[str, ...]
    """Empty: the harness spoke of its own accord, for one when a background task ended."""
    key: str = ""
    """Identifies such a result."""


class Failed(NamedTuple):
    """The prompts `answered` get no answer. `reason` is a clause for people, without a capital and a full stop."""

    reason: str
    answered: tuple[str, ...]
    cancelled: bool = False
    """Because of `interrupt`."""


class GivenBack(NamedTuple):
    """The prompts `keys` were never taken in; they may be asked again."""

    keys: tuple[str, ...]


Event = (
    Started | Forgotten | ToolBegan | ToolEnded | ToolCall | Waiting | Working | Progress | Result | Failed | GivenBack
)
Emit = Callable[[Event], None]


class ProviderSettings(NamedTuple):
    instructions: str = ""
    """Appended to the harness's own system prompt."""
    continuation: str | None = None
    model: str | None = None
    effort: str | None = None
    mcp_servers: Mapping[str, Any] = MappingProxyType({})
    additional_directories: tuple[str, ...] = ()
    gateway: str = ""
    """Path of the gateway's socket."""
    packages: str = ""
    """Folder with the harness's Python packages."""
    workdir: str = "/workspace/agent"


class Provider(Protocol):
    @property
    def native_commands(self) -> frozenset[str]:
        """Slash commands that the harness itself understands, to be passed as they are."""

    @property
    def takes_follow_ups(self) -> bool:
        """Whether it can be asked again before it has answered."""

    def configure(self, settings: ProviderSettings) -> None:
        """Take settings, at the start and whenever they changed. A good moment to warm up."""

    def ask(self, prompt: Prompt) -> None:
        """Answer this, after or together with what was asked before."""

    def interrupt(self) -> None:
        """Give up what is being answered now, with a `Failed(cancelled=True)`."""

    def forget(self) -> None:
        """Begin a new conversation with the next prompt."""

    def close(self) -> None:
        """End the harness's processes, within a few seconds."""
