"""Files go before the message that names them, through a host that keeps them as the real one does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.containers.link.uploads import Uploads
from hermitcrab.model.ids import Generation
from hermitcrab_runner.courier import Courier
from hermitcrab_runner.outs import Outbox
from hermitcrab_runner.reply import cut_files
from hermitcrab_runner.rows import Row
from hermitcrab_wire import frames
from hermitcrab_wire.limits import FILE_CHUNK_BYTES, MAX_FILE_BYTES

DATA = os.urandom(10 * FILE_CHUNK_BYTES + 17)


class Line:
    """A courier and a host's uploads, with a link between them that can be cut."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.outbox = folder / "outbox"
        self.uploads = Uploads(self.outbox, Generation(1))
        self.courier = Courier(self.sent, str(self.work))
        self.said: list[frames.Frame] = []
        self.under_way: list[frames.Frame] = []
        self.cut_after: int | None = None

    def sent(self, frame: frames.Frame) -> None:
        if isinstance(frame, (frames.FileBegin, frames.FileChunk, frames.FileEnd)):
            self.under_way.append(frame)
        else:
            self.said.append(frame)

    def run(self) -> None:
        """Carry frames to and fro until nothing is under way."""
        while self.under_way:
            frame = self.under_way.pop(0)
            if self.cut_after is not None:
                self.cut_after -= 1
                if self.cut_after < 0:
                    self.cut_after = None
                    self.under_way.clear()
                    self.uploads = Uploads(self.outbox, Generation(1))  # another host
                    self.courier.receive(
                        frames.Welcome(protocol=1, generation=1, session="s", config={}, destinations=[], state={})
                    )
                    continue
            reply = self.uploads.handle(frame)  # type: ignore[arg-type]
            if reply is not None:
                assert self.courier.receive(reply)

    def kept(self, out: dict[str, Any]) -> list[bytes]:
        found = self.uploads.take(out["files"], out["content"]["files"])
        assert found is not None
        return [(self.outbox / each.handle).read_bytes() for each in found]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def say(*texts: str) -> list[frames.Out]:
    outbox = Outbox([Row("m", "chat", {"text": "hi"})], ())
    for each in texts:
        outbox.say(None, each)
    return outbox.flush(keep=0)


def test_a_message_goes_after_its_files_and_what_follows_after_it(line: Line) -> None:
    (line.work / "a.pdf").write_bytes(DATA)
    (line.work / "empty").touch()
    first, second = say('See <file path="a.pdf" /> and <file path="empty"></file>', "and that was it")
    for each in (first, second):
        line.courier.send(each)
    assert line.said == []
    assert line.courier.waiting == 2
    line.courier.send(frames.Claim(turn="t", ids=["x"]))
    assert [each.type for each in line.said] == ["claim"]
    line.run()
    sent = [each.to_json() for each in line.said[1:]]
    assert [each["content"]["text"] for each in sent] == ["See  and", "and that was it"]
    assert sent[0]["content"]["files"] == ["a.pdf", "empty"]
    assert line.kept(sent[0]) == [DATA, b""]
    assert "files" not in sent[1]
    assert line.courier.waiting == 0


@pytest.mark.parametrize("after", [0, 1, 3, 8, 12])
def test_a_link_that_breaks_at_any_moment_costs_nothing(line: Line, after: int) -> None:
    (line.work / "a.pdf").write_bytes(DATA)
    line.cut_after = after
    complete = frames.Complete(turn="t", ids=["m"], outs=[say('<file path="a.pdf"/>')[0].to_json()])
    line.courier.send(complete)
    line.run()
    (sent,) = line.said
    assert isinstance(sent, frames.Complete)
    assert (sent.turn, sent.ids) == ("t", ["m"])
    assert line.kept(sent.outs[0]) == [DATA]


def test_a_file_that_cannot_be_sent_costs_itself_only(line: Line) -> None:
    (line.work / "good.txt").write_bytes(b"good")
    (line.work / "folder").mkdir()
    os.mkfifo(line.work / "pipe")
    with (line.work / "huge").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    tags = "".join(f'<file path="{each}"/>' for each in ("gone", "folder", "pipe", "huge", "good.txt"))
    line.courier.send(say(f"Here: {tags}")[0])
    line.run()
    (sent,) = (each.to_json() for each in line.said)
    assert sent["content"]["files"] == ["good.txt"]
    assert line.kept(sent) == [b"good"]
    assert sent["content"]["text"].splitlines() == [
        "Here:",
        "[gone could not be sent: No such file or directory]",
        "[folder could not be sent: it is no file]",
        "[pipe could not be sent: it is no file]",
        f"[huge could not be sent: it has more than {MAX_FILE_BYTES:,} bytes]",
    ]


def test_a_file_that_shrinks_while_it_is_sent_is_not_passed_off_as_whole(line: Line) -> None:
    (line.work / "a").write_bytes(DATA)
    line.courier.send(say('<file path="a"/>')[0])
    os.truncate(line.work / "a", FILE_CHUNK_BYTES)
    line.run()
    (sent,) = (each.to_json() for each in line.said)
    assert "files" not in sent
    assert "could not be sent" in sent["content"]["text"]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("plain", []),
        ('<file path="a b.pdf" />', ["a b.pdf"]),
        ("<file path='a'>", ["a"]),
        ('<file path=""/>', []),
        ('<file name="a"/>', []),
        ('<file path="a"/>' * 12, ["a"] * 10),
    ],
)
def test_tags_of_files(text: str, paths: list[str]) -> None:
    rest, found = cut_files(text, 10)
    assert found == paths
    assert rest.count("<file path=") == (text.count("<file path=") - len(paths))
