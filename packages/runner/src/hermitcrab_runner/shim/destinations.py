"""The destinations that a foreign runner is shown.

It can only answer a chat that has a name. Ours needs none for the chat that a message came from, so that such a chat
may have no name among the agent's destinations; it gets one here. Where an answer may go is the host's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.shim.translate import Place

_NAME = "chat"


class Directory:
    """What the runner is shown, written anew only when it changes."""

    def __init__(self) -> None:
        self._origins: dict[Place, None] = {}
        """Chats that rows came from."""
        self._shown: tuple[tuple[Destination, ...], Place] | None = None

    def met(self, place: Place) -> None:
        self._origins.setdefault(place)

    def show(
        self,
        destinations: Sequence[Destination],
        home: Place,
        write: Callable[[tuple[Destination, ...], Place], None],
    ) -> None:
        wanted = with_origins(destinations, self._origins), home
        if wanted != self._shown:
            write(*wanted)
            self._shown = wanted


def with_origins(destinations: Sequence[Destination], origins: Iterable[Place]) -> tuple[Destination, ...]:
    """All `destinations`, and one more for each chat in `origins` that is none of them."""
    found = list(destinations)
    names = {each.name for each in found}
    chats = {(each.channel_type, each.platform_id) for each in found if each.type == "channel"}
    for place in origins:
        chat = place.chat
        if chat is None or chat in chats or place.channel_type == "agent":
            continue
        number = 1
        while (name := _NAME if number == 1 else f"{_NAME}-{number}") in names:
            number += 1
        names.add(name)
        chats.add(chat)
        found.append(Destination(name, name, "channel", *chat))
    return tuple(found)
