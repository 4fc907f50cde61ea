"""`crab`: the command line. Finds the command, loads only what that one needs, and renders every failure in one way.

A command is a plain function, mostly `async`, that does its work, prints through `output`, and returns an exit code or
None. The home is handed to it, so that none reads global state.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from hermitcrab import __version__
from hermitcrab.errors import BadInputError, HermitcrabError, sole

if TYPE_CHECKING:
    from cyclopts import App

DEBUG = "HERMITCRAB_DEBUG"
"""Set: failures show their traceback."""

INTERRUPTED = 130
USAGE = 2


class Command(NamedTuple):
    name: str
    target: str
    """`module:function` below this package, imported when the command is run."""
    help: str


COMMANDS = (
    Command("up", "up:up", "Run the host in the foreground"),
    Command("status", "status:status", "What the host and its sessions are doing"),
    Command("stop", "status:stop", "Ask the running host to leave"),
    Command("chat", "chat:chat", "Talk to an agent: interactively, or one message with TEXT (- reads stdin)"),
    Command("groups list", "groups:list_groups", "Every agent group"),
    Command("groups create", "groups:create", "Make an agent group with a terminal chat of its own"),
    Command("groups show", "groups:show", "One agent group: who it hears, where it may send, its sessions"),
    Command("groups restart", "restart:group", "Fresh containers for the sessions of an agent group that have one"),
    Command("groups config show", "group_config:show", "How a group's containers are to be"),
    Command("groups config set", "group_config:set_value", "Set one value of a group's config"),
    Command("groups config unset", "group_config:unset", "Put one value of a group's config back to its default"),
    Command("groups config edit", "group_config_edit:edit", "Edit a group's whole config in your editor"),
    Command("groups config import", "group_config:import_document", "Replace a group's whole config (- reads stdin)"),
    Command("skills list", "skills:list_skills", "Skills that agents can have, and where they lie"),
    Command("sessions list", "sessions:list_sessions", "Sessions, newest first"),
    Command("sessions show", "sessions:show", "One session: container, messages, how earlier containers ended"),
    Command("sessions stop", "sessions:stop", "End a session's container; its next message starts another"),
    Command("sessions restart", "restart:session", "A fresh container in the place of a session's"),
    Command("sessions interrupt", "sessions:interrupt", "End the turn that a session's agent is in"),
    Command("sessions release", "sessions:release", "Try a message again that was set aside"),
    Command("sessions export", "archive:export", "Write a session to a file"),
    Command("sessions import", "archive:import_", "Take a session in from a file"),
    Command("sessions move", "archive:move", "Move a session to another home"),
    Command("sessions delete", "archive:delete", "Remove a session with all that it holds"),
    Command("sessions check", "archive:check", "Look whether sessions' databases are sound"),
    Command("messages list", "messages:list_messages", "Messages in both directions, and what became of each"),
    Command("messages show", "messages:show", "One message: everything that happened to it, and its answers"),
    Command("messages retry", "messages:retry", "Another attempt at a message that failed or waits"),
    Command("delivery doctor", "messages:doctor", "What is stuck on its way, why, and what happens next"),
    Command("logs", "logs:logs", "What a session's container wrote"),
    Command("deaths", "deaths:deaths", "How containers ended: of every session, or of one"),
    Command("explain", "explain:explain", "Everything that a group's agent can read, write, reach and run, and why"),
    Command("mounts explain", "mounts:explain", "Whether a path may be mounted into containers, rule by rule"),
    Command("mounts list", "mounts:list_mounts", "From where additional mounts are allowed"),
    Command("doctor", "doctor:doctor", "Check every precondition, each with its fix"),
    Command("config show", "config:show", "Every setting, and where its value comes from"),
    Command("image build", "image:build", "Make the agent image, or with --group a group's own with its packages"),
    Command("image list", "image:list_images", "Every image that was made here, and what needs it"),
    Command("image prune", "image:prune", "Remove the images that nothing needs"),
    Command("demo", "demo:demo", "One message answered by an agent in a sandbox, with evidence from inside"),
    Command("selftest", "selftest:selftest", "Try it out on a scratch home, with --chaos under faults"),
    Command("bench roundtrip", "bench:roundtrip", "Time of a message through a live link"),
    Command("bench wake", "bench:wake", "Time of a cold start, next to the engine's own"),
    Command("bench idle", "bench:idle", "Cost of idle sessions"),
    Command("bench thaw", "bench:thaw", "Time from a message to a frozen session until its runner has it"),
    Command("bench adopt", "bench:adopt", "Time that a restarted host takes to have every live container again"),
    Command("bench storm", "bench:storm", "Many wakes at once: duplicates, and how late the event loop gets"),
    Command("bench stop", "bench:stop", "Time to end many live containers together"),
    Command("bench fuzz", "bench:fuzz", "What a link takes from an adversary, and what others notice of it"),
    Command("bench history", "bench:history", "What a long history costs a message"),
    Command("bench isolation", "bench:isolation", "What bad sessions cost a thousand others"),
    Command("bench throughput", "bench:throughput", "Messages a second through many live sessions, and fairness"),
)

FAMILIES = {
    "groups": "Agent groups",
    "groups config": "How an agent group's containers are to be",
    "skills": "What agents can be taught",
    "sessions": "Conversations and their containers",
    "messages": "What became of each message",
    "delivery": "Messages on their way",
    "mounts": "Additional mounts",
    "config": "Settings",
    "image": "Agent images",
    "bench": "Benchmarks",
}


def main() -> None:
    sys.exit(run(sys.argv[1:], is_process=True))


def run(tokens: Sequence[str], *, is_process: bool = False) -> int:
    """The exit code of one command line: 0 done, 1 failed, 2 wrong usage or no host, 3 no answer, 130 interrupted.

    `is_process`: the process is the command's alone, so that it decides where the logs go.
    """
    try:
        words, home = _split_home(tokens)
        # The overview needs no parser, and people ask for it while they wait.
        if not words or words in (["--help"], ["-h"], ["help"]):
            print(overview())
            return 0
        if words == ["--version"]:
            print(f"crab {__version__}")
            return 0
        return _dispatch(words, home, is_process=is_process)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except BaseException as error:
        cause = _cause(error)
        if os.environ.get(DEBUG):
            traceback.print_exception(cause)
        if isinstance(cause, KeyboardInterrupt):
            return INTERRUPTED
        if not isinstance(cause, HermitcrabError):
            if isinstance(cause, Exception) and not os.environ.get(DEBUG):
                return _unexpected(cause)
            raise
        return _explain(cause)


def _cause(error: BaseException) -> BaseException:
    """What to tell of a failure: of several at once, one that was foreseen."""
    error = sole(error)
    if isinstance(error, BaseExceptionGroup):
        foreseen = error.subgroup((HermitcrabError, KeyboardInterrupt))
        if foreseen is not None:
            return _cause(foreseen.exceptions[0])
    return error


def overview() -> str:
    """What `crab --help` prints."""
    width = max(len(each.name) for each in COMMANDS)
    lines = [f"  {each.name:<{width}}  {each.help}" for each in COMMANDS]
    return "\n".join(
        [
            "Usage: crab [--home FOLDER] COMMAND [OPTIONS]",
            "",
            "A host for AI agents: each conversation has an agent in a container of its own.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --home FOLDER  The installation's folder (default: HERMITCRAB_HOME, or the platform's data folder)",
            "  --help, -h     Of crab, or of one command: crab COMMAND --help",
            "  --version      The version",
        ]
    )


def build_app() -> App:
    """The parser of every command. No command's module is imported by this."""
    from cyclopts import App  # noqa: PLC0415  # a fifth of a second that the overview need not wait

    app = App(
        name="crab",
        help=f"{overview().splitlines()[2]} `--home FOLDER` goes with every command.",
        version=__version__,
        help_format="plaintext",
    )
    families: dict[str, App] = {}
    for name, text in FAMILIES.items():
        outer, _, last = name.rpartition(" ")
        families[name] = App(name=last, help=text)
        (families[outer] if outer else app).command(families[name])
    for each in COMMANDS:
        family_name, _, name = each.name.rpartition(" ")
        owner = families[family_name] if family_name else app
        owner.command(f"hermitcrab.cli.{each.target}", name=name, help=each.help)
    return app


def _dispatch(words: list[str], home: str | None, *, is_process: bool) -> int:
    from hermitcrab.observe.pauses import import_structlog, importing  # noqa: PLC0415

    with importing():
        if words[0] == "up":
            import_structlog()
        import anyio  # noqa: PLC0415

        # As service managers say it: whoever waits for a host to come back need not wait for a parser as well.
        call = _host(home) if words == ["up"] else _parsed(words, home)
    if is_process and words[0] != "up":
        _log_to_stderr()
    outcome = call()
    if isinstance(outcome, Awaitable):
        outcome = anyio.run(_awaited, outcome)
    return outcome if isinstance(outcome, int) else 0


def _log_to_stderr() -> None:
    """Unless told otherwise, events go to stdout, where a command's own answer is. Most commands have none."""
    if "structlog" in sys.modules:
        from hermitcrab.observe.logs import configure_logs  # noqa: PLC0415

        configure_logs(level="warning")


def _host(home: str | None) -> Callable[[], object]:
    from hermitcrab.cli.hosting import run_host  # noqa: PLC0415
    from hermitcrab.settings.home import Home, resolve  # noqa: PLC0415

    return partial(run_host, Home(resolve(home)))


def _parsed(words: list[str], home: str | None) -> Callable[[], object]:
    """The command that a line stands for. Raises BadInputError."""
    from cyclopts import CycloptsError  # noqa: PLC0415

    from hermitcrab.settings.home import Home, resolve  # noqa: PLC0415

    try:
        line = _dash_last(words)
        # Imports the command's module, with all that it needs.
        command, bound, ignored = build_app().parse_args(line, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        told = " ".join(str(error).split())
        raise BadInputError(told, hint=f"crab {_command_of(words)}--help") from error
    given = {"home": Home(resolve(home))} if "home" in ignored else {}
    return partial(command, *bound.args, **bound.kwargs, **given)


async def _awaited(outcome: Awaitable[object]) -> object:
    return await outcome


def _split_home(tokens: Sequence[str]) -> tuple[list[str], str | None]:
    """`--home` may stand anywhere before `--`; the rest is the command."""
    words: list[str] = []
    home: str | None = None
    rest = iter(tokens)
    for word in rest:
        if word == "--":
            words += [word, *rest]
        elif word == "--home":
            home = next(rest, None)
            if home is None:
                raise BadInputError("--home needs a folder.", hint="crab --home FOLDER COMMAND")
        elif word.startswith("--home="):
            home = word.removeprefix("--home=")
        else:
            words.append(word)
    return words, home


def _dash_last(words: list[str]) -> list[str]:
    """A lone `-` is an argument and no option; the parser believes that only of what comes after `--`."""
    plain_words = words[: words.index("--")] if "--" in words else words
    if "-" not in plain_words:
        return words
    rest = words[len(plain_words) + 1 :]
    return [*(word for word in plain_words if word != "-"), "--", "-", *rest]


def _command_of(words: Sequence[str]) -> str:
    """The longest beginning of the line that names a command, with a space after it."""
    for count in (3, 2, 1):
        name = " ".join(words[:count])
        if any(each.name == name for each in COMMANDS) or name in FAMILIES:
            return f"{name} "
    return ""


def _explain(error: HermitcrabError) -> int:
    from hermitcrab.channels.terminal.render import plain  # noqa: PLC0415

    sys.stdout.flush()
    print(f"crab: {plain(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"      {plain(error.hint)}", file=sys.stderr)
    return error.exit_code


def _unexpected(error: Exception) -> int:
    """A fault of ours, or a machine that does what nobody foresaw: said in a line, with the way to more."""
    said = " ".join(str(error).split())
    print(f"crab: unexpected {type(error).__name__}: {said}"[:500], file=sys.stderr)
    print(
        f"      This is a fault in crab or an answer of this machine that it does not know. {DEBUG}=1 shows where.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    main()
