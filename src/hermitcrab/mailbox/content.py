"""What a mailbox takes: content as compact JSON, text that is valid Unicode, both bounded."""

from __future__ import annotations

import json
from typing import Any

from hermitcrab.errors import BadInputError, StoreDamagedError
from hermitcrab.model.messages import Address
from hermitcrab_wire.codec import is_too_deep
from hermitcrab_wire.limits import MAX_CONTENT_BYTES, MAX_NESTING


def to_text(content: dict[str, Any]) -> str:
    """Raises BadInputError for what is no JSON, no Unicode, too large or nested too deeply."""
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadInputError("the message is not valid Unicode: it holds half of a surrogate pair") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(f"the message cannot be kept as JSON: {error}") from error
    if size > MAX_CONTENT_BYTES:
        raise BadInputError(f"the message has {size:,} bytes; a mailbox takes {MAX_CONTENT_BYTES:,}")
    if is_too_deep(content):
        raise BadInputError(f"the message is nested more than {MAX_NESTING} deep")
    return text


def to_content(text: str, row_id: str) -> dict[str, Any]:
    """Raises StoreDamagedError when the row holds no JSON object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreDamagedError(f"row {row_id} does not hold JSON") from error
    # Another system may have kept bare text.
    return content if isinstance(content, dict) else {"text": str(content)}


def check_texts(*texts: str | None) -> None:
    """Raises BadInputError for text that no database takes."""
    for text in texts:
        if text is None or text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadInputError("an id or address is not valid Unicode: it holds half of a surrogate pair") from error


def address_columns(address: Address | None) -> tuple[str | None, str | None, str | None]:
    """platform_id, channel_type, thread_id."""
    if address is None:
        return None, None, None
    return address.platform_id, address.channel_type, address.thread_id


def address_of(platform_id: str | None, channel_type: str | None, thread_id: str | None) -> Address | None:
    if channel_type is None or platform_id is None:
        return None
    return Address(channel_type=channel_type, platform_id=platform_id, thread_id=thread_id)
