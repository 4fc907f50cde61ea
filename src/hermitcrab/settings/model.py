"""What an installation can be told: every setting, its bounds and its default.

`load.py` fills these in from the settings file, the environment and the command line. A secret is never a setting: a
setting says where the secret is (`env:NAME`, `file:/path`), and whoever uses it reads it there.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_ENV_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_FILE_REFERENCE = re.compile(r"file:/[^\0\r\n]+", re.ASCII)


def _check_timezone(name: str) -> str:
    if name == "UTC":
        return name  # known even where the machine has no zone files
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("is no IANA time zone; write one like Europe/Berlin, or UTC") from error
    return name


def _check_secret_reference(text: str) -> str:
    if _ENV_REFERENCE.fullmatch(text) or _FILE_REFERENCE.fullmatch(text):
        return text
    raise ValueError(
        "must say where the secret is, env:NAME or file:/absolute/path; the secret itself does not belong here"
    )


def _check_upstream(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("is no URL") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("must be a URL like https://api.example.com")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password")
    if parts.query or parts.fragment or any(character <= " " for character in url):
        raise ValueError("must be a plain URL without query, fragment or spaces")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("must be https: over http the key would travel in the clear; only this machine may be http")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _none_if_empty(text: str | None) -> str | None:
    # The environment has no other way to say "nothing".
    return text or None


OptionalText = Annotated[str | None, Field(max_length=4096), AfterValidator(_none_if_empty)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Deadline = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Quiet = Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)]
TimeZone = Annotated[str, AfterValidator(_check_timezone)]
SecretReference = Annotated[str, AfterValidator(_check_secret_reference)]
Upstream = Annotated[str, AfterValidator(_check_upstream)]


class _Section(BaseModel):
    # Its validator is made as a part of the whole's, and not by itself before.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ContainerSettings(_Section):
    """How containers are made, and what one may use."""

    engine: Name = "bubblewrap"
    """What makes the containers: bubblewrap, docker or podman, or the name of one that a package adds."""
    docker_socket: OptionalText = None
    """Where Docker listens. None: the usual places."""
    podman_socket: OptionalText = None
    """Where Podman listens. None: the usual places."""
    image: OptionalText = None
    """What containers are made from. None: the image that fits this version; bubblewrap needs none."""
    memory_mb: int = Field(default=1024, ge=64, le=1_048_576)
    """The most memory of one container."""
    pids: int = Field(default=256, ge=16, le=65_536)
    """The most processes and threads of one container."""
    cpus: float = Field(default=1.0, gt=0, le=1024, allow_inf_nan=False)
    """The most CPU time of one container: 0.5 is half of one CPU."""
    workspace_mb: int = Field(default=8192, ge=0, le=1_048_576)
    """What a session may keep on disk: its own folders and its group's together; and no file may be larger. Measured
    while the session works; one that is over it is ended, and starts again when there is room. 0: no limit."""
    workspace_files: int = Field(default=400_000, ge=0, le=10_000_000)
    """How many files and folders that may be. 0: no limit."""
    workspace_look_s: Quiet = 10.0
    """A session that works is measured no more often than this."""
    log_bytes: int = Field(default=4_194_304, ge=65_536, le=1_073_741_824)
    """What is kept of one container's output, in all its files together."""
    log_files: int = Field(default=2, ge=1, le=20)
    """Into how many files Docker cuts that; Podman and bubblewrap keep one."""
    memory_reservation_mb: int = Field(default=256, ge=16, le=1_048_576)
    """What one container is counted for in the budget, if its limit is not less. Most use far less than their limit."""
    memory_budget_mb: int | None = Field(default=None, ge=64, le=16_777_216)
    """What all containers together may be counted for. None: three quarters of what is free at the host's start."""
    max_running: int = Field(default=64, ge=1, le=10_000)
    """The most containers at a time, frozen ones included. The quietest makes room for who wants to start."""
    concurrent_starts: int = Field(default=4, ge=1, le=256)
    """How many containers are started at a time."""
    create_deadline_s: Deadline = 60.0
    """How long the engine may take to look for an image, and to make a container."""
    start_deadline_s: Deadline = 30.0
    """How long the engine may take to start a container that it made."""
    hello_deadline_s: Deadline = 20.0
    """How long the runner in a started container may take to say that it is there."""
    quiet_before_freeze_s: Quiet = 300.0
    """A container that has nothing to do for so long is frozen; the next message thaws it."""
    quiet_before_stop_s: Quiet = 1800.0
    """A container that has nothing to do for so long is ended; the next message starts another."""
    drain_within_s: Quiet = 5.0
    """A container that is ended while it works may finish its turn within this; only then is it told to end."""
    stop_grace_s: Quiet = 10.0
    """Between being told to end and being killed."""
    silent_before_kill_s: Annotated[float, Field(ge=0.5, le=3600, allow_inf_nan=False)] = 30.0
    """A container whose runner gives no sign of life for so long is ended. Its runner beats six times in this."""
    quarantine_after: int = Field(default=3, ge=1, le=100)
    """A message is set aside when so many containers ended the same way while they worked on it."""
    lifetime_s: Quiet = 0.0
    """A container is ended when it is as old as this, whatever it does. 0: none is ended for its age."""


class AgentSettings(_Section):
    """What an agent group has unless it says otherwise."""

    provider: Name = "claude"
    """The agent harness: claude, or echo, which repeats what it hears."""
    model: OptionalText = None
    """The model that the harness uses. None: its own choice."""
    effort: OptionalText = None
    """How hard the model is to think, in the words of the harness. None: its own choice."""
    assistant_name: OptionalText = None
    """What agents call themselves. None: the name of their group."""
    max_messages_per_prompt: int = Field(default=10, ge=1, le=64)
    """How many messages that wait are given to an agent together."""
    timezone: TimeZone = "UTC"
    """The time zone in containers."""
    tool_timeout_s: Deadline = 900.0
    """The longest time that a tool may run: all in all if it says itself how long, else without a sign of progress."""
    tool_grace_s: Quiet = 30.0
    """How much longer than it said itself a tool may run."""


class GatewaySettings(_Section):
    """Where the gateway sends requests, and where it finds the keys for them."""

    anthropic_upstream: Upstream = "https://api.anthropic.com"
    """Where requests of the claude harness go."""
    anthropic_key: SecretReference = "env:ANTHROPIC_API_KEY"
    """Where the host finds the key for them: env:NAME, or file:/path of a file that only its owner can read."""


class DeliverySettings(_Section):
    """How messages get to their channels."""

    give_up_after_s: float = Field(default=86_400.0, ge=0, le=30 * 86_400, allow_inf_nan=False)
    """A message that no attempt could deliver for so long has failed. One that waits for somebody to come has not."""
    attempt_deadline_s: Deadline = 60.0
    """How long a channel may take over one message."""


class LogSettings(_Section):
    """What the host writes to its standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are written."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: for people on a terminal, JSON lines anywhere else."""


class LimitSettings(_Section):
    message_bytes: int = Field(default=262_144, ge=1024, le=1_000_000)
    """The longest text of one message."""
    whole_messages_days: int = Field(default=365, ge=0, le=36_500)
    """How long messages are kept whole. Of older ones the first words stay, and all that replies, edits and reactions
    need. 0: for ever."""


class ImageSettings(_Section):
    """How images are made. Crossing a limit ends the build, and the image from before stays in use."""

    build_deadline_s: Deadline = 900.0
    """For fetching the packages, and once more for installing them."""
    build_memory_mb: int = Field(default=2048, ge=256, le=1_048_576)
    """The most memory of the container in which packages are installed."""
    build_disk_mb: int = Field(default=6144, ge=64, le=1_048_576)
    """The most that a build may add to its image, and that may be fetched for it."""
    apt_sources: OptionalText = None
    """A sources.list with which Debian packages are fetched. None: Debian's own archive, for the image's release."""


class Settings(_Section):
    """Everything that one installation was told."""

    containers: ContainerSettings = Field(default_factory=ContainerSettings)
    agents: AgentSettings = Field(default_factory=AgentSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    logs: LogSettings = Field(default_factory=LogSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    images: ImageSettings = Field(default_factory=ImageSettings)
