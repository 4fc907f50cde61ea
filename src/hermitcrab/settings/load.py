"""Where each setting comes from: the command line over the environment over the settings file over the default.

Everything is checked at once, and whatever is wrong is named with the place where it was said. Values are never
repeated in a message: people paste keys into the wrong line.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hermitcrab.errors import SettingsError
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings

ENVIRONMENT_PREFIX = "HERMITCRAB__"
"""HERMITCRAB__CONTAINERS__ENGINE sets containers.engine. With one underscore only, it is not a setting."""

_MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingOrigin:
    """One setting as it is in force, and who said so. References to secrets are shown as references."""

    key: str
    value: str | int | float | None
    origin: str


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    origin: str


def load(
    home_path: Path, overrides: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings of the home. Raises SettingsError that names everything wrong.

    `overrides`: from the command line, `{"containers.engine": "docker"}` or nested; None stands for "not given".
    `environment`: instead of the process's own.
    """
    return _validate(_collect(home_path, overrides or {}, environment))


def explain(
    home_path: Path, overrides: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None
) -> list[SettingOrigin]:
    """Every setting with its value and origin, in the order of the model. Raises SettingsError as `load` does."""
    given = _collect(home_path, overrides or {}, environment)
    settings = _validate(given)
    return [
        SettingOrigin(key=key, value=_value_of(settings, key), origin=given[key].origin if key in given else "default")
        for key in _known_keys()
    ]


def _collect(home_path: Path, overrides: Mapping[str, Any], environment: Mapping[str, str] | None) -> dict[str, _Given]:
    file = Home(home_path).settings_file
    given: dict[str, _Given] = {}
    problems: list[str] = []
    for source in (
        _from_file(file),
        _from_environment(os.environ if environment is None else environment),
        _from_overrides(overrides),
    ):
        for key, each in source:
            if key in _known_keys():
                given[key] = each
            else:
                problems.append(_unknown(key, each))
    if problems:
        raise _refusal(problems)
    return given


def _from_file(file: Path) -> Iterator[tuple[str, _Given]]:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read: {error.strerror or error}",
            hint="It must be a text file that the user who runs crab may read.",
        ) from error
    if len(data) > _MAX_FILE_BYTES:
        raise SettingsError(f"{file} is larger than {_MAX_FILE_BYTES} bytes", hint="Is it a settings file?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{file}, line {line}: is not UTF-8 text", hint="Save the file as UTF-8.") from error
    try:
        parsed = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(
            f"{file}, {_place_of(error, text)}: is not valid TOML: {_reason_of(error)}",
            hint='Write settings as KEY = VALUE below a [section]; text stands in "quotes".',
        ) from error
    for key, value in _flatten(parsed):
        found = _line_of(key, text)
        yield key, _Given(value, f"{file}, line {found}" if found else str(file))


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, _Given]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = ".".join(name.removeprefix(ENVIRONMENT_PREFIX).split("__")).lower()
            yield key, _Given(environment[name], f"environment {name}")


def _from_overrides(overrides: Mapping[str, Any]) -> Iterator[tuple[str, _Given]]:
    for key, value in _flatten(overrides):
        if value is not None:
            yield key, _Given(value, "command line")


def _flatten(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping):
            # An empty section says nothing, but a misspelt one must not go unseen.
            if not value and key not in Settings.model_fields:
                yield key, value
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _validate(given: Mapping[str, _Given]) -> Settings:
    nested: dict[str, dict[str, object]] = {}
    for key, each in given.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = each.value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False, include_context=False):
            key = ".".join(str(part) for part in problem["loc"][:2])
            reason = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{_origin_of(given, key)}: {key} {reason[:1].lower()}{reason[1:]}")
    # Outside the handler: pydantic's own error repeats the value, and must not ride along as the cause.
    raise _refusal(problems)


def _refusal(problems: list[str]) -> SettingsError:
    return SettingsError("; ".join(problems), hint="docs/reference/settings.md lists every setting.")


def _unknown(key: str, given: _Given) -> str:
    if key in Settings.model_fields:
        return f"{given.origin}: {key} is a section, not a setting; write [{key}] and its settings below"
    close = difflib.get_close_matches(key, [*_known_keys(), *Settings.model_fields], n=1, cutoff=0.5)
    if not close:
        same_name = [known for known in _known_keys() if known.rpartition(".")[2] == key.rpartition(".")[2]]
        close = same_name[:1]
    suggestion = f"; did you mean {close[0]}?" if close else ""
    return f"{given.origin}: there is no setting {key[:80]!r}{suggestion}"


def _origin_of(given: Mapping[str, _Given], key: str) -> str:
    return given[key].origin if key in given else "default"


def _known_keys() -> list[str]:
    return [
        f"{section}.{name}"
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for name in field.annotation.model_fields
    ]


def _value_of(settings: Settings, key: str) -> str | int | float | None:
    section, _, name = key.partition(".")
    value: str | int | float | None = getattr(getattr(settings, section), name)
    return value


def _place_of(error: Exception, text: str) -> str:
    if found := re.search(r"at line (\d+), column (\d+)", str(error)):
        return f"line {found[1]}, column {found[2]}"
    return f"line {text.count(chr(10)) + 1}" if "end of document" in str(error) else "somewhere"


def _reason_of(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    reason = re.sub(r" \(at .*\)$", "", str(error))
    # The parser quotes the text that it cannot read only for names; values may be secrets, names are not.
    return f"{reason[:1].lower()}{reason[1:]}"


def _line_of(key: str, text: str) -> int | None:
    """The line where a dotted key is set, found by reading lines as people do; None when it is written otherwise."""
    section, _, name = key.rpartition(".")
    present = ""
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if header := re.match(r"\[\s*([^\[\]]+?)\s*\]", stripped):
            present = header[1].replace('"', "").replace(" ", "")
            continue
        if setting := re.match(r"([A-Za-z0-9_.\"\- ]+?)\s*=", stripped):
            written = setting[1].replace('"', "").replace(" ", "")
            if (f"{present}.{written}" if present else written) == (f"{section}.{name}" if section else name):
                return number
    return None
