"""Files that only the host writes, before they are on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    content: bytes
    executable: bool = False


def text_document(text: str) -> Document:
    return Document(text.encode())
