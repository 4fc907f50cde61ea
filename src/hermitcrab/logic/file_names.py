"""Names of files that agents send, as people may be shown them. Pure."""

from __future__ import annotations

import re
import unicodedata

LONGEST_BYTES = 150
"""Within what every platform and file system takes, with room for a mark in front."""

NAMELESS = "file"

_HIDDEN = re.compile(
    "[\u200b-\u200f\u061c\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"  # change the direction of text, or hide in it
)
_NOT_IN_NAMES = re.compile(r'[<>:"|?*]')


def shown_name(name: str) -> str:
    """A name without a folder, without anything that hides or reorders text, and of bounded length.

    Whatever is given, what comes back can be made as a file of that name in one folder, and never outside it.
    """
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode()[-10_000:])
    text = _HIDDEN.sub("", text)
    text = "".join(each for each in text if unicodedata.category(each) not in {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
    text = re.split(r"[/\\]", text)[-1]
    text = " ".join(_NOT_IN_NAMES.sub("_", text).split()).strip(" .")
    stem, dot, ending = text.rpartition(".")
    ending = f".{ending}" if dot and len(ending.encode()) <= 20 else ""
    stem = stem if ending else text
    room = LONGEST_BYTES - len(ending.encode())
    stem = stem.encode()[:room].decode("utf-8", "ignore").strip(" .")
    return f"{stem}{ending}" if stem else f"{NAMELESS}{ending}"
