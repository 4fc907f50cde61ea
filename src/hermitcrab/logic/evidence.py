"""What the facts measured inside a sandbox prove. Pure: `crab demo` measures, this judges, `crab demo` shows.

A line holds only when its fact was measured and is as it must be; what could not be seen does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OUTSIDE = ("192.0.2.1", 443)
"""An address reserved for documentation, which no network routes: reaching for it does no harm anywhere."""

_NO_ROUTE = frozenset({"ENETUNREACH", "ENETDOWN", "EACCES", "EPERM"})
"""Errors that only a missing or forbidden network gives. A mere timeout proves nothing: the address never answers."""

_SECCOMP_FILTER = 2

ENGINES_OWN_PROCESSES = 1
"""An engine may count the process that holds the sandbox together on top of what the agent may have."""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    ok: bool
    value: Any
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the host knows, to hold against what was measured."""

    host_cmdline: str
    """How the host process was started."""
    host_pid_namespace: str | None
    memory_bytes: int
    pids: int
    cpus: float
    open_files: int
    unrealized: Mapping[str, str] = field(default_factory=dict)
    """Promises that the engine says it cannot keep on this machine, each with its reason."""


def judge(facts: Mapping[str, Any], outside: Mapping[str, float | None], expected: Expected) -> list[Line]:
    """The evidence, line by line.

    `facts`: the runner's own, from inside. `outside`: limits of the container's control group as the host sees them
    (memory_bytes, pids, cpus), as far as it may look.
    """
    capabilities, seccomp = facts.get("effective_capabilities"), facts.get("seccomp")
    return [
        _pid_1(facts),
        _line("uid", _is_integer(facts.get("uid")) and facts.get("uid") != 0, facts.get("uid"), "not root inside"),
        _line(
            "effective_capabilities",
            _is_integer(capabilities) and capabilities == 0,
            capabilities,
            f"none in force; bounding set {_hexadecimal(facts.get('bounding'))}",
        ),
        _line(
            "no_new_privs",
            facts.get("no_new_privs") == 1,
            facts.get("no_new_privs"),
            "no program can gain privileges",
        ),
        _line("seccomp", seccomp == _SECCOMP_FILTER, seccomp, "a system call filter is in force"),
        _line(
            "root_read_only",
            facts.get("root_read_only") is True,
            facts.get("root_read_only"),
            f"writing there: {facts.get('root_write_error')}",
        ),
        _line(
            "host_home_invisible",
            facts.get("host_home_visible") is False,
            facts.get("host_home_visible") is False,
            "the host's home is not there",
        ),
        _processes(facts, expected),
        _network(facts),
        *_limits(facts, outside, expected),
    ]


def _line(name: str, ok: bool, value: Any, detail: str) -> Line:
    return Line(name, ok, value, detail if ok else f"expected otherwise ({detail})")


def _pid_1(facts: Mapping[str, Any]) -> Line:
    cmdline = facts.get("pid_1_cmdline")
    ours = isinstance(cmdline, str) and "hermitcrab_runner" in cmdline.split()
    return _line("pid_1", ours, cmdline, f"the runner; it is process {facts.get('pid')} of its own namespace")


def _processes(facts: Mapping[str, Any], expected: Expected) -> Line:
    seen, namespace = facts.get("host_pid_cmdline"), facts.get("pid_namespace")
    count = facts.get("processes_visible")
    apart = namespace is not None and namespace != expected.host_pid_namespace
    ok = "host_pid_cmdline" in facts and seen != expected.host_cmdline and apart and _is_integer(count)
    return _line("host_processes_invisible", ok, ok, f"{count} processes visible, all of its own namespace")


def _network(facts: Mapping[str, Any]) -> Line:
    result, found = facts.get("tcp_outside"), facts.get("interfaces")
    interfaces = ", ".join(str(each) for each in found) if isinstance(found, list) else "unknown"
    detail = f"connecting to {OUTSIDE[0]}: {result}; interfaces: {interfaces}"
    return _line("tcp_outside_unreachable", isinstance(result, str) and result in _NO_ROUTE, result, detail)


def _limits(facts: Mapping[str, Any], outside: Mapping[str, float | None], expected: Expected) -> list[Line]:
    inside = facts.get("limits")
    inside = inside if isinstance(inside, Mapping) else {}
    wanted = (
        ("memory", expected.memory_bytes, "bytes", (inside.get("memory"), outside.get("memory_bytes"))),
        (
            "pids",
            expected.pids + ENGINES_OWN_PROCESSES,
            "processes",
            (inside.get("pids"), inside.get("nproc"), outside.get("pids")),
        ),
        ("cpus", expected.cpus, "CPUs", (outside.get("cpus"),)),
        ("open-files", expected.open_files, "open files", (inside.get("open_files"),)),
    )
    lines = [_limit(promise, at_most, unit, seen, expected) for promise, at_most, unit, seen in wanted]
    core = inside.get("core")
    return [*lines, _line("limit_core_dumps", _is_integer(core) and core == 0, core, "no core dumps")]


def _limit(promise: str, at_most: float, unit: str, seen: Iterable[Any], expected: Expected) -> Line:
    """A limit that is in force, or one that the engine honestly says it cannot keep here."""
    name = f"limit_{promise.replace('-', '_')}"
    # Several places may say a limit; the lowest is the one that is felt.
    value = min((each for each in seen if _is_number(each)), default=None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and 0 < value <= at_most:
        return Line(name, ok=True, value=value, detail=f"at most {value:,.12g} {unit}")
    if (reason := expected.unrealized.get(promise)) is not None:
        return Line(name, ok=True, value="unrealized", detail=f"not kept on this machine: {reason}")
    found = "no limit was found" if value is None else f"{value:,.12g} {unit} were found"
    return Line(name, ok=False, value=value, detail=f"expected at most {at_most:,.12g} {unit}; {found}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hexadecimal(value: Any) -> str:
    return hex(value) if isinstance(value, int) else "unknown"
