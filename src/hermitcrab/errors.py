"""Every error that Hermitcrab raises on purpose. The message says what happened and to what; `hint` says what to do.

"The thing asked for failed" is usually a value (`WakeOutcome`, `ExitRecord`); these are for "we could not do it".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class HermitcrabError(Exception):
    """Hermitcrab could not do what was asked."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInputError(HermitcrabError):
    """What was given cannot be used."""

    exit_code = 2


class NotFoundError(HermitcrabError):
    """There is no such thing here."""


class ConflictError(HermitcrabError):
    """It exists already, or somebody else was first."""


class ClaimLostError(ConflictError):
    """Another host has begun to start the session's container."""


class NotAgreedError(HermitcrabError):
    """It needs the agreement of a person who was shown what it comes to."""


class SettingsError(BadInputError):
    """The settings cannot be used."""


class HomeError(HermitcrabError):
    """The home folder cannot be used."""


class HomeInUseError(HomeError):
    """Another host runs on this home."""


class StoreError(HermitcrabError):
    """A database cannot be used."""


class DiskFullError(StoreError):
    """The disk is full. What was to be written was not accepted, and nothing that was accepted is lost."""


class StoreDamagedError(StoreError):
    """A database is damaged, or is not what its name says. It was left as it is."""


class StoreTooNewError(StoreError):
    """The database was written by a newer Hermitcrab; it was not touched."""


class ConfigError(HermitcrabError):
    """The stored config of an agent group cannot be used."""


class HostUnreachableError(HermitcrabError):
    """No host answers on this home."""

    exit_code = 2


class NoAnswerError(HermitcrabError):
    """The agent did not answer in time. The message is kept and will be answered."""

    exit_code = 3


class ChannelError(HermitcrabError):
    """A channel could not deliver. `transient`: the same may work later, after `retry_after_s` if that is known.

    `limits`: for whom the platform asks to wait: for this chat, or for everything that goes through the channel.
    """

    def __init__(
        self,
        message: str,
        *,
        transient: bool,
        hint: str = "",
        retry_after_s: float | None = None,
        limits: Literal["chat", "channel"] = "chat",
    ) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient
        self.retry_after_s = retry_after_s
        self.limits: Literal["chat", "channel"] = limits


class NobodyThereError(ChannelError):
    """Nobody is there to take a message, which waits without limit: the channel says when somebody comes."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, transient=True, hint=hint)


class Failure(StrEnum):
    """Why a container could not be had (law 12)."""

    SPEC_INVALID = "spec-invalid"
    DENIED_BY_POLICY = "denied-by-policy"
    IMAGE_UNAVAILABLE = "image-unavailable"
    RUNTIME_UNAVAILABLE = "runtime-unavailable"
    RESOURCES_EXHAUSTED = "resources-exhausted"
    STARTED_THEN_DIED = "started-then-died"
    NAME_IN_USE = "name-in-use"
    STORE_UNAVAILABLE = "store-unavailable"
    GATEWAY_UNAVAILABLE = "gateway-unavailable"
    UNKNOWN = "unknown"

    @property
    def retryable(self) -> bool:
        """Whether the same attempt may succeed later without anybody changing anything."""
        return self not in {Failure.SPEC_INVALID, Failure.DENIED_BY_POLICY}


class EngineError(HermitcrabError):
    """An engine could not do what was asked. Its own words stay in the log; the message is ours."""

    def __init__(self, failure: Failure, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.failure = failure


def sole(error: BaseException) -> BaseException:
    """What a task group wrapped, when it wrapped one thing only: the error that the code in it raised."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
