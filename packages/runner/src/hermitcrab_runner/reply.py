"""What a model's text means: which part goes to whom, and which part stays private.

Pure. `<message to="name">...</message>` addresses a destination; `<internal>...</internal>` is for the model itself.
Text outside of both goes to the session's own chat, unless the model has several destinations and addressed some: then
it is scratch. Words for a destination that does not exist go to nobody: another chat must not see them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

_TAG = re.compile(r"<(/?)(message|internal)((?:\s+[^<>]*)?)>")
_TO = re.compile(r"""(?:^|\s)to\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_FILE = re.compile(r"""<file\s+path\s*=\s*(?:"([^"<>\0]*)"|'([^'<>\0]*)')\s*(?:/>|>(?:\s*</file>)?)""")


class Said(NamedTuple):
    """One message to one place; `to` is None for the session's own chat."""

    to: str | None
    text: str


class Reply(NamedTuple):
    said: tuple[Said, ...]
    undeliverable: tuple[Said, ...]
    """Addressed to names that are no destinations."""
    scratch: str
    """What the model kept to itself."""


def parse_reply(text: str, destinations: Collection[str], *, blocks_only: bool = False) -> Reply:
    """Split `text`. With `blocks_only`, text outside of blocks is scratch: the turn is not over yet."""
    blocks, bare, internal = _cut(text)
    said = tuple(each for each in blocks if each.text and (each.to is None or each.to in destinations))
    undeliverable = tuple(each for each in blocks if each.text and each.to is not None and each.to not in destinations)
    if bare and not blocks_only and (not said or len(destinations) <= 1):
        said = (*said, Said(None, bare))
        bare = ""
    return Reply(said, undeliverable, "\n".join(part for part in (bare, internal) if part))


def cut_files(text: str, most: int) -> tuple[str, list[str]]:
    """The text without its `<file path="...">` tags, and the paths in them. Beyond `most`, tags stay as they are."""
    paths: list[str] = []

    def take(tag: re.Match[str]) -> str:
        path = (tag.group(1) or tag.group(2) or "").strip()
        if not path or len(paths) >= most:
            return tag.group()
        paths.append(path)
        return ""

    rest = _FILE.sub(take, text)
    return (rest.strip(), paths) if paths else (text, [])


def clean(text: str) -> str:
    """Halves of surrogate pairs joined where they belong together, else replaced: no frame takes one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _cut(text: str) -> tuple[list[Said], str, str]:
    """Blocks, bare text and internal text. A tag that is never closed reaches to the end: it was cut off there."""
    blocks: list[Said] = []
    bare: list[str] = []
    internal: list[str] = []
    body: list[str] | None = None
    to: str | None = None
    hidden = 0
    at = 0

    def put(piece: str) -> None:
        (internal if hidden else bare if body is None else body).append(piece)

    for tag in _TAG.finditer(text):
        closing, name, attributes = tag.groups()
        put(text[at : tag.start()])
        at = tag.end()
        if name == "internal":
            hidden = max(0, hidden + (-1 if closing else 1))
        elif hidden:
            internal.append(tag.group())
        elif not closing and body is None:
            body, to = [], _destination(attributes)
        elif closing and body is not None:
            blocks.append(Said(to, "".join(body).strip()))
            body = None
        else:
            put(tag.group())
    put(text[at:])
    if body is not None:
        blocks.append(Said(to, "".join(body).strip()))
    return blocks, "".join(bare).strip(), "".join(internal).strip()


def _destination(attributes: str) -> str | None:
    found = _TO.search(attributes)
    return (found.group(1) if found.group(1) is not None else found.group(2)) or None if found else None
