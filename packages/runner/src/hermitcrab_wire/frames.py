"""Every frame of the link, once. `to_json` gives what `codec.encode` takes; `parsing.py` gives a checked frame.

The road of a message over the link:

    runner                         host
    Hello              ->
                       <-          Welcome
                       <-          Inbound            rows that wait, oldest first
    Claim              ->                             "these are in my turn"
                       <-          Claimed
    Out                ->                             something said in mid-turn
                       <-          Committed          after the host's fsync
    FileBegin          ->                             a file that something said will name
                       <-          FileReady          from where to send it: also after a broken link
    FileChunk, FileEnd ->
                       <-          FileReady, FileStored
    Complete           ->                             the turn's last words and the rows that it answers, as one
                       <-          Completed          after the host's fsync
                       <-          Delivered          what became of something said, to runners that want to know

Every acknowledged frame may be repeated after a broken link: its id (or turn) makes the repeat harmless.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, NoReturn, dataclass_transform

Json = dict[str, Any]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Frame:
    """Fields are what a subclass annotates. Generating the code of as many dataclasses costs a runner 10 ms."""

    type: ClassVar[str] = ""
    FIELDS: ClassVar[dict[str, str]] = {}
    """Annotations by field name, in order."""
    _optional: ClassVar[Json] = {}

    def __init_subclass__(cls) -> None:
        cls.FIELDS = {name: kind for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar")}
        cls._optional = {name: cls.__dict__[name] for name in cls.FIELDS if name in cls.__dict__}

    def __init__(self, **values: Any) -> None:
        for name in self.FIELDS:
            if name in values:
                value = values.pop(name)
            elif name in self._optional:
                value = copy(self._optional[name])
            else:
                raise TypeError(f"{self.type} lacks {name}")
            object.__setattr__(self, name, value)
        if values:
            raise TypeError(f"{self.type} has no {', '.join(values)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{self.type} is frozen; {name} cannot change")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.FIELDS)})"

    def to_json(self) -> Json:
        """The frame as a JSON object; fields that are None are left out."""
        message: Json = {"type": self.type}
        for name in self.FIELDS:
            value = getattr(self, name)
            if value is not None:
                message[name] = value
        return message


# From the runner.


class Hello(Frame):
    type = "hello"
    protocol: int
    generation: int
    provider: str
    version: str
    pid: int = 0
    uptime_ms: int = 0
    """From the start of the runner's process to this hello."""
    rss_kb: int = 0
    resumes: bool = False
    """True when this process had a link before: what it holds in memory is still there."""
    holds: list[str] = []  # noqa: RUF012  # copied for each frame
    """Ids of the rows that it still works on, so that the host does not push them again."""
    writable: list[str] = []  # noqa: RUF012  # copied for each frame
    """Places where it tried to write before this hello, and could."""
    unwritable: list[Json] = []  # noqa: RUF012  # copied for each frame
    """Places where it could not: each {path, error}."""
    reports: str = ""
    """Of which ends of what it said it wants to hear (`Delivered`): all, failed, or none."""


class Claim(Frame):
    type = "claim"
    turn: str
    ids: list[str]


class Out(Frame):
    """One message of the agent. `to` names a destination; without it the session's own chat is meant."""

    type = "out"
    id: str
    kind: str
    content: Json
    to: str | None = None
    in_reply_to: str | None = None
    files: list[str] | None = None
    """Ids of files that were stored before, one for each name in `content.files`."""
    deliver_after: str | None = None
    """Not to be sent before this time (ISO 8601 with a zone)."""


class FileBegin(Frame):
    """A file of so many bytes follows. Its name travels in the content of the message that has it."""

    type = "file-begin"
    id: str
    bytes: int


class FileChunk(Frame):
    """Part of a file, in Base64. `offset` is where it begins."""

    type = "file-chunk"
    id: str
    offset: int
    data: str


class FileEnd(Frame):
    """All of it was sent, with this SHA-256 in hex digits."""

    type = "file-end"
    id: str
    sha256: str


class Complete(Frame):
    """The end of a turn: `outs` (each like an `Out`) are committed together with the end of rows `ids`."""

    type = "complete"
    turn: str
    ids: list[str]
    outs: list[Json] = []  # noqa: RUF012  # copied for each frame
    failed: str | None = None
    """Why the rows were given up. Absent: they were answered."""


class Beat(Frame):
    """Sent by the runner's own timer: it proves life, not progress."""

    type = "beat"
    activity: str
    """idle, thinking, tool, rate-limited or draining."""
    detail: str | None = None
    """The tool's name, or what the provider waits for."""
    until_ms: int | None = None
    """How much longer that may take, if the runner knows."""
    rss_kb: int | None = None


class ToolStopped(Frame):
    """A tool had not ended long after its time, and the runner interrupted its turn."""

    type = "tool-stopped"
    tool: str
    after_ms: int


class SetState(Frame):
    """One key of the session's state, kept across containers. Without a value the key is dropped."""

    type = "set-state"
    id: str
    key: str
    value: str | None = None


class Answer(Frame):
    """The answer to the host's `Ask`."""

    type = "answer"
    id: str
    result: Json | None = None
    error: str | None = None


class Log(Frame):
    type = "log"
    text: str


class Bye(Frame):
    """The runner ends by its own will, after what it held was completed or given back."""

    type = "bye"
    reason: str


# From the host.


class Welcome(Frame):
    type = "welcome"
    protocol: int
    generation: int
    session: str
    config: Json
    destinations: list[Json]
    """Each {name, display_name, type, channel_type, platform_id, agent_group_id}."""
    state: Json
    """The session's key-value state: text by key."""
    routing: Json | None = None
    """The session's own chat, as {channel_type, platform_id, thread_id}. Absent: it belongs to none."""


class Inbound(Frame):
    """Rows to work on, oldest first. Each {id, seq, kind, timestamp, trigger, content, channel_type, ...}."""

    type = "inbound"
    rows: list[Json]


class Claimed(Frame):
    type = "claimed"
    turn: str


class Committed(Frame):
    type = "committed"
    id: str
    seq: int | None = None
    """The number by which the agent may name what it said."""


class Completed(Frame):
    type = "completed"
    turn: str


class Delivered(Frame):
    """What became of something that was said: it is with its platform, or it ended otherwise. May be repeated."""

    type = "delivered"
    id: str
    failed: str | None = None
    """Why it did not arrive."""
    platform_id: str | None = None
    """What the platform calls it, where it has ids."""


class FileReady(Frame):
    """So much of a file the host has; the next chunk begins there. Answers a begin and each chunk."""

    type = "file-ready"
    id: str
    offset: int


class FileStored(Frame):
    """The whole file is on disk, and messages may name it."""

    type = "file-stored"
    id: str


class Refused(Frame):
    """A frame was not accepted. `id` repeats the refused frame's id or turn, where it had one."""

    type = "refused"
    code: str
    text: str
    id: str | None = None


class Ask(Frame):
    """A question to the runner itself, never to the model; `evidence` is the only subject so far."""

    type = "ask"
    id: str
    subject: str
    arguments: Json = {}  # noqa: RUF012  # copied for each frame


class Cancel(Frame):
    """Interrupt the turn that runs."""

    type = "cancel"
    reason: str


class Drain(Frame):
    """Finish the turn that runs, take no more rows, say `Bye` and exit, within `within_ms`."""

    type = "drain"
    within_ms: int


FROM_RUNNER: dict[str, type[Frame]] = {
    each.type: each
    for each in (
        Hello,
        Claim,
        Out,
        FileBegin,
        FileChunk,
        FileEnd,
        Complete,
        Beat,
        ToolStopped,
        SetState,
        Answer,
        Log,
        Bye,
    )
}
FROM_HOST: dict[str, type[Frame]] = {
    each.type: each
    for each in (
        Welcome,
        Inbound,
        Claimed,
        Committed,
        Completed,
        Delivered,
        FileReady,
        FileStored,
        Refused,
        Ask,
        Cancel,
        Drain,
    )
}
