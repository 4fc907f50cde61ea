"""Frames that no honest peer sends, by a seed: valid ones with a field changed, bytes flipped, cut, doubled or nested.

Run as a program it is the attacker at a link: `python -m hermitcrab.testing.mutated_frames SOCKET SEED` dials, says
hello and sends them for as long as it lives, a few hundred for each one that ends its link.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermitcrab.settings.sockets import connect_unix
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import WireError
from hermitcrab_wire.limits import MAX_FRAME_BYTES
from hermitcrab_wire.parsing import parse

FRAMES_ON_A_LINK = 400
UNKNOWN_ON_A_LINK = 90
"""A host bears a hundred frames of unknown types on one link."""

SOFT = 0.75
"""How often a frame is changed so that it keeps its shape: what ends a link ends all that would come after it."""

HUGE = 1 / 40_000
"""How often a frame is longer than any may be."""

_OUT = {"id": "o", "kind": "chat", "content": {"text": "words"}, "to": None, "in_reply_to": "row"}

FROM_RUNNER: tuple[tuple[int, dict[str, Any]], ...] = (
    (120, {"type": "beat", "activity": "tool", "detail": "bash", "until_ms": 1000, "rss_kb": 1}),
    (120, {"type": "claim", "turn": "t", "ids": ["a", "b"]}),
    (60, {"type": "answer", "id": "ask-0", "result": {"a": 1}, "error": None}),
    (60, {"type": "log", "text": "a line"}),
    (60, {"type": "tool-stopped", "tool": "bash", "after_ms": 1}),
    (10, {"type": "bye", "reason": "drained"}),
    (4, {"type": "hello", "protocol": 1, "generation": 1, "provider": "echo", "version": "0", "holds": ["a"]}),
    (2, {"type": "out", **_OUT, "deliver_after": "2026-01-01T00:00:00Z", "files": ["f"]}),
    (2, {"type": "complete", "turn": "t", "ids": ["a"], "outs": [_OUT], "failed": None}),
    (1, {"type": "set-state", "id": "s", "key": "k", "value": "v"}),
    (1, {"type": "file-begin", "id": "f", "bytes": 10}),
    (1, {"type": "file-chunk", "id": "f", "offset": 0, "data": "AAAA"}),
    (1, {"type": "file-end", "id": "f", "sha256": "0" * 64}),
    (4, {"type": "teleport", "id": "x"}),
)
"""What a runner says, and how often it is taken for a mutation: least what costs a host a write to its disk."""

FROM_HOST: tuple[tuple[int, dict[str, Any]], ...] = (
    (
        1,
        {
            "type": "inbound",
            "rows": [{"id": "r", "seq": 2, "kind": "chat", "trigger": False, "content": {"text": "x"}}],
        },
    ),
    (1, {"type": "claimed", "turn": "t"}),
    (1, {"type": "committed", "id": "o"}),
    (1, {"type": "completed", "turn": "t"}),
    (1, {"type": "file-ready", "id": "f", "offset": 0}),
    (1, {"type": "file-stored", "id": "f"}),
    (1, {"type": "refused", "code": "too-large", "text": "no", "id": "o"}),
    (1, {"type": "ask", "id": "a", "subject": "evidence", "arguments": {}}),
    (1, {"type": "cancel", "reason": "asked"}),
)


def _deep(levels: int) -> str:
    return "[" * levels + "]" * levels


_VALUES = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e308",
    "-0.0",
    "9007199254740992",
    "9007199254740993",
    "123456789012345678901234567890",
    "NaN",
    "Infinity",
    '""',
    '"x"',
    '"\\u0000"',
    '"\\ud800"',
    "[]",
    "{}",
    "[null]",
    "[[]]",
    '{"":""}',
    '{"type":"hello"}',
    "-Infinity",
    "1E400",
]
_VALUES += [json.dumps("x" * 201), json.dumps(["i"] * 300), json.dumps([{"id": "o"}] * 20), _deep(50), _deep(3000)]
_BYTES = (b"\xff", b"\x00", b"\xc3\x28", b"\xed\xa0\x80", b"\\", b'"', b"{", b"}", b"\r", b"\xf5", b"\n", b"\n\n")


class Mutator:
    def __init__(self, seed: int, corpus: tuple[tuple[int, dict[str, Any]], ...] = FROM_RUNNER) -> None:
        self._dice = random.Random(seed)
        self._weights = [weight for weight, _ in corpus]
        self._corpus = [(frame, json.dumps(frame).encode()) for _, frame in corpus]

    def line(self) -> bytes:
        """One mutated frame, or what is left of it, with its newline."""
        dice = self._dice
        if dice.random() < HUGE:
            return b'{"type":"log","text":"' + b"x" * MAX_FRAME_BYTES + b'"}\n'
        frame, whole = dice.choices(self._corpus, self._weights)[0]
        if dice.random() < SOFT:
            return self._with_other_words(frame) + b"\n"
        if dice.random() < 0.7:
            whole = self._with_another_field(frame)
        if dice.random() < 0.5:
            whole = self._with_other_bytes(whole)
        return whole + b"\n"

    def _with_other_words(self, frame: dict[str, Any]) -> bytes:
        """What a host must read and bear: other words, a field that it does not know, or one that comes twice."""
        dice = self._dice
        name = dice.choice(list(frame))
        if name != "type" and isinstance(frame[name], str) and dice.random() < 0.5:
            return json.dumps({**frame, name: _words(dice)}, ensure_ascii=dice.random() < 0.5).encode()
        other = dice.choice(_VALUES) if dice.random() < 0.3 else json.dumps(_words(dice))
        name = name if dice.random() < 0.5 else f"new-{name}"
        return f'{{"{name}":{other},{json.dumps(frame)[1:]}'.encode()

    def _with_another_field(self, frame: dict[str, Any]) -> bytes:
        dice = self._dice
        fields = {name: json.dumps(value) for name, value in frame.items()}
        name = dice.choice(list(fields))
        match dice.randrange(8):
            case 0:
                del fields[name]
            case 1:
                fields[f"{name}2"] = dice.choice(_VALUES)
            case 2:
                # Twice the same name: which of the two counts, no peer may depend on.
                return f'{{"{name}":{dice.choice(_VALUES)},{json.dumps(frame)[1:]}'.encode()
            case 3 if name != "type":
                fields[name] = json.dumps(dice.choice(list(frame.values())))
            case 4 if isinstance(frame[name], str) and name != "type":
                fields[name] = json.dumps(_words(dice))
            case _:
                if name == "type" and dice.random() < 0.8:
                    name = next((each for each in reversed(fields) if each != "type"), name)
                fields[name] = dice.choice(_VALUES)
        return ("{" + ",".join(f'"{each}":{value}' for each, value in fields.items()) + "}").encode()

    def _with_other_bytes(self, whole: bytes) -> bytes:
        dice, data = self._dice, bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(data)) if data else 0
            match dice.randrange(6):
                case 0:
                    del data[place:]
                case 1:
                    data[place:place] = dice.choice(_BYTES)
                case 2:
                    data[place:place] = data[: dice.randint(0, 40)]
                case 3:
                    del data[place : place + dice.randint(1, 8)]
                case _ if data:
                    data[place] ^= 1 << dice.randrange(8)
        return bytes(data)


_ALPHABET = [chr(each) for each in (*range(1, 0x250), *range(0x2000, 0x2100), 0xFEFF, 0xFFFF, 0x1F980, 0x10FFFF)]


def _words(dice: random.Random) -> str:
    return "".join(dice.choices(_ALPHABET, k=dice.choice((1, 3, 12, 40, 200))))


def fate(line: bytes, known: dict[str, type[frames.Frame]]) -> str:
    """What reading that line comes to, before anybody acts on it: `taken`, `unknown`, or `ends` the link."""
    found = "taken"
    for each in line.split(b"\n"):
        if not each:
            continue
        try:
            frame = parse(codec.decode(each), known)
        except WireError as error:
            if error.code != "unknown-type":
                return "ends"
            found = "unknown"
        else:
            if isinstance(frame, frames.Hello):
                return "ends"
    return found


def batches(seed: int) -> Callable[[], bytes]:
    """Each call gives what to send on one link after its hello: many frames that it bears, and one that ends it."""
    mutator = Mutator(seed)
    breaking: list[bytes] = []

    def batch() -> bytes:
        lines: list[bytes] = []
        unknown = 0
        while len(lines) < FRAMES_ON_A_LINK:
            line = mutator.line()
            match fate(line, frames.FROM_RUNNER):
                case "ends":
                    if len(breaking) < FRAMES_ON_A_LINK:
                        breaking.append(line)
                case "unknown":
                    unknown += 1
                    if unknown < UNKNOWN_ON_A_LINK:
                        lines.append(line)
                case _:
                    lines.append(line)
        if breaking:
            lines.append(breaking.pop())
        return b"".join(lines)

    return batch


def attack(path: Path, seed: int) -> None:
    """Until the process is ended or nobody listens any more."""
    batch = batches(seed)
    hello = codec.encode(frames.Hello(protocol=1, generation=1, provider="echo", version="0").to_json())
    while True:
        payload = hello + batch()
        try:
            with connect_unix(path) as peer:
                _exchange(peer, payload)
        except (BrokenPipeError, ConnectionResetError):
            continue  # It was cut in the middle, as it deserved.
        except (FileNotFoundError, ConnectionRefusedError):
            return


def _exchange(peer: socket.socket, payload: bytes) -> None:
    """Send it all and read what is answered, until the host closes."""
    peer.setblocking(False)
    waiting = memoryview(payload)
    while True:
        readable, writable, _ = select.select([peer], [peer] if waiting else [], [], 10)
        if readable and not peer.recv(1 << 16):
            return
        if writable:
            waiting = waiting[peer.send(waiting[: 1 << 16]) :]
        if not readable and not writable:
            return


if __name__ == "__main__":
    attack(Path(sys.argv[1]), int(sys.argv[2]))
