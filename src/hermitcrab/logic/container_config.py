"""An agent group's container config as people write it: checked in every part, and written back without its defaults.

A document is a JSON object. Unknown keys are errors, every value is bounded, and nothing that looks like a credential
gets in: whatever the config says ends up in a container.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from hermitcrab.errors import BadInputError
from hermitcrab.logic.credentials import credential_in, names_secret, without_credentials
from hermitcrab.logic.image_packages import parse_packages
from hermitcrab.logic.mounts import name_problem, path_problem
from hermitcrab.model.container import Hardening
from hermitcrab.model.container_config import (
    AdditionalMount,
    CliScope,
    ContainerConfig,
    GroupLimits,
    McpServer,
    Packages,
)

DOCUMENT_BYTES_AT_MOST = 256 * 1024
INSTRUCTIONS_CHARACTERS_AT_MOST = 16 * 1024
MOST_SERVERS = 32
MOST_SKILLS = 128
MOST_MOUNTS = 32
MOST_ARGUMENTS = 64
MOST_VARIABLES = 64

RESERVED_SERVER_NAMES = frozenset({"hermitcrab"})
"""Our own tools' name."""

_RESERVED_VARIABLES = ("HERMITCRAB_", "LD_", "PYTHON")
"""Beginnings of variables that say how the runner and its sandbox work."""


def _like(pattern: str, expected: str) -> AfterValidator:
    grammar = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if grammar.fullmatch(text) is None:
            raise ValueError(f"must be {expected}")
        return text

    return AfterValidator(check)


def _not(problem: str) -> None:
    if problem:
        raise ValueError(problem)


def _plain(text: str) -> str:
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("holds characters that cannot be printed")
    return text


def _prose(text: str) -> str:
    if any(character < " " and character not in "\n\t" for character in text):
        raise ValueError("holds characters that cannot be printed")
    return text


def _no_credential(text: str) -> str:
    if credential_in(text):
        raise ValueError("looks like a credential; the gateway adds those, and no container may hold one")
    return text


def _image(text: str) -> str:
    if ".." in text or "//" in text:
        raise ValueError("is no reference of an image")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("is no URL") from error
    if parts.scheme not in {"http", "https"} or not host or any(character <= " " for character in text):
        raise ValueError("must be a URL like https://tools.example.com/mcp")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password")
    return text


def _path(text: str) -> str:
    _not(path_problem(text))
    return text


def _mount_name(text: str) -> str:
    _not(name_problem(text))
    return text


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


def _server_name(text: str) -> str:
    if text in RESERVED_SERVER_NAMES:
        raise ValueError(f"{text!r} is the name of our own tools")
    return text


def _variable(text: str) -> str:
    if text.startswith(_RESERVED_VARIABLES):
        raise ValueError("is a variable that only the host sets")
    return text


_Plain = Annotated[str, AfterValidator(_plain), AfterValidator(_no_credential)]
_Argument = Annotated[_Plain, Field(max_length=4096)]
_Name = Annotated[str, _like(r"[a-z0-9][a-z0-9_-]{0,62}", "1 to 63 of a-z 0-9 _ -, beginning with a letter or digit")]
_ServerName = Annotated[
    str,
    _like(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", "named with 1 to 63 of A-Z a-z 0-9 _ -, beginning with a letter or digit"),
    AfterValidator(_server_name),
]
_VariableName = Annotated[
    str, _like(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "named like a variable: A-Z a-z 0-9 _"), AfterValidator(_variable)
]
_Program = Annotated[_Plain, _like(r"[^-\s].{0,1023}", "a program, and begin with no - and no space")]
_Model = Annotated[
    str, _like(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,255}", "the name of a model"), AfterValidator(_no_credential)
]
_Effort = Annotated[str, _like(r"[a-z][a-z0-9-]{0,30}", "a word like low, medium or high")]
_Image = Annotated[str, _like(r"[a-z0-9/][A-Za-z0-9._:/@+-]{0,511}", "a reference of an image"), AfterValidator(_image)]


class _Part(BaseModel):
    # Strict: "512" is no number and 1 no truth. Lists become tuples, as JSON has only lists.
    # Built with the first document: most groups have none.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class _Server(_Part):
    command: _Program | None = None
    args: Annotated[tuple[_Argument, ...], Field(max_length=MOST_ARGUMENTS)] = ()
    env: Annotated[dict[_VariableName, _Argument], Field(max_length=MOST_VARIABLES)] = Field(default_factory=dict)
    url: Annotated[str, Field(max_length=2048), AfterValidator(_url), AfterValidator(_no_credential)] | None = None
    transport: Literal["http", "sse"] = "http"
    instructions: Annotated[
        str,
        Field(max_length=INSTRUCTIONS_CHARACTERS_AT_MOST),
        AfterValidator(_prose),
        AfterValidator(_no_credential),
    ] = ""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("needs either a command or a url")
        if self.url is not None and (self.args or self.env):
            raise ValueError("has args or env, which only a command can have")
        for name, value in self.env.items():
            if names_secret(name, value):
                raise ValueError(f"env {name} is called like a secret; the gateway adds those, write a placeholder")
        return self


class _Mount(_Part):
    host_path: Annotated[str, AfterValidator(_path)]
    name: Annotated[str, AfterValidator(_mount_name)] | None = None
    read_only: bool = True


class _Packages(_Part):
    apt: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _are_packages(self) -> Self:
        try:
            parse_packages(apt=self.apt, npm=self.npm, pip=self.pip)
        except BadInputError as error:
            raise ValueError(f"{error.message}. {error.hint}".rstrip(". ")) from error
        return self


class _Limits(_Part):
    memory_mb: Annotated[int, Field(ge=64, le=1_048_576)] | None = None
    pids: Annotated[int, Field(ge=16, le=65_536)] | None = None
    cpus: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)] | None = None
    workspace_mb: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    workspace_files: Annotated[int, Field(ge=100, le=10_000_000)] | None = None


_Skills = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[tuple[_Name, ...], Field(max_length=MOST_SKILLS), AfterValidator(_unique), Tag("list")],
    Discriminator(lambda value: "all" if isinstance(value, str) else "list"),
]


class _Document(_Part):
    provider: _Name | None = None
    model: _Model | None = None
    effort: _Effort | None = None
    image: _Image | None = None
    assistant_name: Annotated[_Plain, Field(min_length=1, max_length=80)] | None = None
    max_messages_per_prompt: Annotated[int, Field(ge=1, le=64)] | None = None
    skills: _Skills = "all"
    mcp_servers: Annotated[dict[_ServerName, _Server], Field(max_length=MOST_SERVERS)] = Field(default_factory=dict)
    packages: _Packages = Field(default_factory=_Packages)
    additional_mounts: Annotated[tuple[_Mount, ...], Field(max_length=MOST_MOUNTS)] = ()
    cli_scope: CliScope = "group"
    limits: _Limits = Field(default_factory=_Limits)
    hardening: Hardening = "standard"
    foreign_command: Annotated[tuple[_Argument, ...], Field(max_length=MOST_ARGUMENTS)] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.foreign_command and (not self.foreign_command[0] or self.foreign_command[0].startswith("-")):
            raise ValueError("foreign_command must begin with a program")
        names = [each.name or each.host_path.rstrip("/").rsplit("/", 1)[-1] for each in self.additional_mounts]
        if len(set(names)) != len(names):
            raise ValueError("two of additional_mounts have the same name in the container")
        return self


KEYS = tuple(_Document.model_fields)
"""Of a document, in the order in which people read them."""


def parse(document: Mapping[str, Any]) -> ContainerConfig:
    """The config that a JSON object stands for. Raises BadInputError that names everything wrong with it."""
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal([f"it is no JSON: {error}"]) from error
    if len(text) > DOCUMENT_BYTES_AT_MOST:
        raise _refusal([f"it is longer than {DOCUMENT_BYTES_AT_MOST} bytes"])
    try:
        # From JSON text: only there does strictness take a list for a tuple.
        found = _Document.model_validate_json(text)
    except ValidationError as error:
        raise _refusal(list(dict.fromkeys(_problems(error)))) from error
    return ContainerConfig(
        provider=found.provider,
        model=found.model,
        effort=found.effort,
        image=found.image,
        assistant_name=found.assistant_name,
        max_messages_per_prompt=found.max_messages_per_prompt,
        skills=found.skills,
        mcp_servers=MappingProxyType({name: _server(each) for name, each in sorted(found.mcp_servers.items())}),
        packages=Packages(**dict(found.packages)),
        additional_mounts=tuple(AdditionalMount(**dict(each)) for each in found.additional_mounts),
        cli_scope=found.cli_scope,
        limits=GroupLimits(**dict(found.limits)),
        hardening=found.hardening,
        foreign_command=found.foreign_command,
    )


def _server(found: _Server) -> McpServer:
    return McpServer(**{**dict(found), "env": MappingProxyType(dict(sorted(found.env.items())))})


def to_document(config: ContainerConfig) -> dict[str, Any]:
    """The smallest document that `parse` makes the same config of: what is a default is left out."""
    return _without_defaults(config)


def whole_document(config: ContainerConfig) -> dict[str, Any]:
    """Every key with its value, defaults included."""
    return {key: _value(getattr(config, key), keep_defaults=True) for key in KEYS}


def _without_defaults(part: Any) -> dict[str, Any]:
    blank = type(part)() if not isinstance(part, AdditionalMount) else AdditionalMount(host_path="")
    return {
        name: _value(getattr(part, name), keep_defaults=False)
        for name in part.__dataclass_fields__
        if getattr(part, name) != getattr(blank, name)
    }


def _value(value: Any, *, keep_defaults: bool) -> Any:
    match value:
        case None | str() | bool() | int() | float():
            return value
        case tuple():
            return [_value(each, keep_defaults=keep_defaults) for each in value]
        case Mapping():
            return {key: _value(each, keep_defaults=keep_defaults) for key, each in value.items()}
        case _ if keep_defaults:
            return {name: _value(getattr(value, name), keep_defaults=True) for name in value.__dataclass_fields__}
        case _:
            return _without_defaults(value)


def _refusal(problems: list[str]) -> BadInputError:
    told = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
    return BadInputError(f"The config cannot be used: {'; '.join(told)}", hint="Nothing was changed.")


def _problems(error: ValidationError) -> Iterator[str]:
    """Each problem with its place. Values are never repeated: people paste keys into the wrong line."""
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        where = [str(part)[:80] for part in each["loc"] if part != "[key]"]
        if where[:1] == ["skills"]:
            del where[1:2]  # Which of its two kinds it was taken for.
        place = ".".join(where)
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(each["loc"][-1]), KEYS, n=1) if len(each["loc"]) == 1 else []
            message = "there is no such key" + (f"; did you mean {close[0]}?" if close else "")
        message = f"{message[:1].lower()}{message[1:]}"
        yield without_credentials(f"{place}: {message}" if place else message)
