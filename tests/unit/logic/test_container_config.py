"""What may stand in an agent group's container config, and what becomes of a document that is edited."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import BadInputError
from hermitcrab.logic.container_config import KEYS, parse, to_document, whole_document
from hermitcrab.logic.container_config_edit import with_value, without_value
from hermitcrab.model.container_config import ContainerConfig, McpServer, Packages

MADE_UP_KEY = "ghp_" + "abcdefghij0123456789"
"""Has the shape of a credential, and is none."""

WHOLE: dict[str, Any] = {
    "provider": "claude",
    "model": "claude-opus-4-1[1m]",
    "effort": "high",
    "image": "registry.example/agents@sha256:0123",
    "assistant_name": "Crusty, the crab",
    "max_messages_per_prompt": 5,
    "skills": ["notes", "web"],
    "mcp_servers": {
        "files": {
            "command": "python3",
            "args": ["-m", "files", "--root=/workspace"],
            "env": {"LEVEL": "debug", "API_KEY": "placeholder"},
            "instructions": "Use it\nfor files.",
        },
        "remote": {"url": "https://tools.example.com/mcp", "transport": "sse"},
    },
    "packages": {"apt": ["ffmpeg"], "npm": ["typescript@5.9.2"], "pip": ["requests==2.32.4"]},
    "additional_mounts": [{"host_path": "/srv/library", "name": "books", "read_only": False}],
    "cli_scope": "disabled",
    "limits": {"memory_mb": 512, "pids": 64, "cpus": 0.5, "workspace_mb": 100, "workspace_files": 1000},
    "hardening": "strict",
    "foreign_command": ["bun", "run", "/app/src/index.ts"],
}


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(BadInputError) as caught:
        parse(document)
    assert caught.value.hint
    return caught.value.message


def test_an_empty_document_is_the_default_config_and_back() -> None:
    assert parse({}) == ContainerConfig()
    assert to_document(ContainerConfig()) == {}


def test_every_key_can_be_said_and_is_written_back_as_it_was() -> None:
    assert set(WHOLE) == set(KEYS) == set(ContainerConfig.__dataclass_fields__)
    config = parse(WHOLE)
    assert (config.runner, parse({}).runner) == ("foreign", "own")
    assert config.packages == Packages(apt=("ffmpeg",), npm=("typescript@5.9.2",), pip=("requests==2.32.4",))
    assert config.mcp_servers["remote"] == McpServer(url="https://tools.example.com/mcp", transport="sse")
    assert to_document(config) == WHOLE
    assert parse(whole_document(config)) == config


def test_the_whole_document_shows_defaults_too() -> None:
    shown = whole_document(ContainerConfig())
    assert tuple(shown) == KEYS
    assert (shown["skills"], shown["limits"]) == (
        "all",
        dict.fromkeys(("memory_mb", "pids", "cpus", "workspace_mb", "workspace_files")),
    )
    assert parse(shown) == ContainerConfig()


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"modle": "x"}, "modle: there is no such key; did you mean model?"),
        ({"limits": {"disk": 1}}, "limits.disk: there is no such key"),
        ({"mcp_servers": {"a": {"command": "x", "cwd": "/"}}}, "mcp_servers.a.cwd: there is no such key"),
        ({"max_messages_per_prompt": True}, "max_messages_per_prompt"),
        ({"max_messages_per_prompt": "5"}, "max_messages_per_prompt"),
        ({"max_messages_per_prompt": 65}, "max_messages_per_prompt"),
        ({"limits": {"memory_mb": 63}}, "limits.memory_mb"),
        ({"limits": {"pids": 0}}, "limits.pids"),
        ({"limits": {"cpus": 0}}, "limits.cpus"),
        ({"limits": {"cpus": float("inf")}}, "no JSON"),
        ({"limits": {"pids": 10**400}}, "limits.pids"),
        ({"provider": ""}, "provider"),
        ({"provider": "-v"}, "provider"),
        ({"model": "--model"}, "model"),
        ({"model": "a b"}, "model"),
        ({"effort": "HIGH!"}, "effort"),
        ({"image": "-v"}, "image"),
        ({"image": "../../etc"}, "image"),
        ({"image": "x\n"}, "image"),
        ({"assistant_name": ""}, "assistant_name"),
        ({"assistant_name": "a\0b"}, "assistant_name"),
        ({"assistant_name": "a\nb"}, "assistant_name"),
        ({"assistant_name": "\ud800"}, "invalid JSON"),
        ({"assistant_name": "x" * 81}, "assistant_name"),
        ({"skills": "none"}, "skills: input should be 'all'"),
        ({"skills": ["../x"]}, "skills.0"),
        ({"skills": ["-v"]}, "skills.0"),
        ({"skills": ["a\0"]}, "skills.0"),
        ({"skills": ["a", "a"]}, "skills: names something twice"),
        ({"skills": [f"s{number}" for number in range(200)]}, "skills"),
        ({"mcp_servers": {"../x": {"command": "x"}}}, "mcp_servers.../x: must be named"),
        ({"mcp_servers": {"hermitcrab": {"command": "x"}}}, "our own tools"),
        ({"mcp_servers": {"a": {}}}, "mcp_servers.a: needs either a command or a url"),
        ({"mcp_servers": {"a": {"command": "x", "url": "http://x"}}}, "either a command or a url"),
        ({"mcp_servers": {"a": {"url": "http://x", "args": ["y"]}}}, "only a command can have"),
        ({"mcp_servers": {"a": {"command": "-c"}}}, "mcp_servers.a.command"),
        ({"mcp_servers": {"a": {"command": ""}}}, "mcp_servers.a.command"),
        ({"mcp_servers": {"a": {"command": "x", "args": ["\0"]}}}, "mcp_servers.a.args.0"),
        ({"mcp_servers": {"a": {"command": "x", "env": {"A=B": "c"}}}}, "named like a variable"),
        ({"mcp_servers": {"a": {"command": "x", "env": {"LD_PRELOAD": "c"}}}}, "only the host sets"),
        ({"mcp_servers": {"a": {"command": "x", "env": {"HERMITCRAB_LINK": "c"}}}}, "only the host sets"),
        ({"mcp_servers": {"a": {"command": "x", "instructions": "y" * 20_000}}}, "mcp_servers.a.instructions"),
        ({"mcp_servers": {"a": {"url": "file:///etc/passwd"}}}, "mcp_servers.a.url"),
        ({"packages": {"apt": ["x; curl"]}}, "packages"),
        ({"packages": {"apt": ["-o"]}}, "packages"),
        ({"packages": {"npm": ["x@file:/a"]}}, "packages"),
        ({"packages": {"pip": ["git+https://x"]}}, "packages"),
        ({"additional_mounts": [{"host_path": "relative"}]}, "additional_mounts.0.host_path"),
        ({"additional_mounts": [{"host_path": "/a/../b"}]}, "additional_mounts.0.host_path"),
        ({"additional_mounts": [{"host_path": "/a", "name": "../x"}]}, "additional_mounts.0.name"),
        ({"additional_mounts": [{"host_path": "/a/x"}, {"host_path": "/b/x/"}]}, "same name in the container"),
        ({"additional_mounts": [{"host_path": "/a", "read_only": "yes"}]}, "additional_mounts.0.read_only"),
        ({"cli_scope": "root"}, "cli_scope"),
        ({"hardening": "none"}, "hardening"),
        ({"foreign_command": ["-c", "x"]}, "must begin with a program"),
        ({"foreign_command": [""]}, "must begin with a program"),
        ({"privileged": True}, "privileged: there is no such key"),
        ({"network": "host"}, "network: there is no such key"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_place(document: dict[str, Any], told: str) -> None:
    assert told in refusal(document)


def test_everything_wrong_is_told_at_once() -> None:
    told = refusal({"modle": 1, "provider": "-v", "limits": {"pids": 1}})
    assert all(place in told for place in ("modle", "provider", "limits.pids"))


def test_a_document_without_end_is_refused() -> None:
    servers = {f"s{number}": {"command": "x", "args": ["y" * 4096] * 64} for number in range(32)}
    assert "longer than" in refusal({"mcp_servers": servers})
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"mcp_servers": deep}
    assert "no JSON" in refusal(deep)


@pytest.mark.parametrize("name", ["LEVEL", "PATH", "API_KEY", "x"])
@pytest.mark.parametrize(
    "value",
    [
        MADE_UP_KEY,
        "sk-ant-" + "0123456789abcdefghij",
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "xoxb-" + "12345678-abc",
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0.abcdefgh",
        "-----BEGIN PRIVATE KEY----- abc",
        "postgres://me:hunter22@db/x",
    ],
)
def test_a_credential_is_refused_under_any_name_and_never_repeated(name: str, value: str) -> None:
    told = refusal({"mcp_servers": {"a": {"command": "x", "env": {name: value}}}})
    assert "credential" in told
    assert value not in told
    assert value not in refusal({"mcp_servers": {"a": {"command": "x", "args": ["--token", value]}}})


def test_a_variable_called_like_a_secret_must_hold_a_placeholder() -> None:
    told = refusal({"mcp_servers": {"a": {"command": "x", "env": {"DB_PASSWORD": "hunter2"}}}})
    assert "DB_PASSWORD is called like a secret" in told
    assert "hunter2" not in told
    for placeholder in (
        "placeholder",
        "",
        "your-key-here",
        "${TOKEN}",
        "<token>",
        "unused",
        "sk-ant-placeholder-000000",
    ):
        parse({"mcp_servers": {"a": {"command": "x", "env": {"API_KEY": placeholder}}}})


@pytest.mark.parametrize(
    "document",
    [
        {"model": MADE_UP_KEY},
        {"effort": MADE_UP_KEY},
        {MADE_UP_KEY: 1},
        {"mcp_servers": {MADE_UP_KEY: {}}},
        {"packages": {"apt": [f"{MADE_UP_KEY};"]}},
        {"additional_mounts": [{"host_path": f"x/{MADE_UP_KEY}"}]},
    ],
)
def test_a_credential_in_the_wrong_place_is_not_repeated(document: dict[str, Any]) -> None:
    assert MADE_UP_KEY not in refusal(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), JSON, max_size=6))
def test_any_json_is_a_config_or_a_refusal(document: dict[str, Any]) -> None:
    try:
        config = parse(document)
    except BadInputError:
        return
    assert parse(to_document(config)) == config


NAME = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,10}", fullmatch=True)
PLAIN = st.text(string.ascii_lowercase + " .,ü", max_size=12)
SERVER = st.fixed_dictionaries(
    {"command": NAME},
    optional={"args": st.lists(PLAIN, max_size=3), "env": st.dictionaries(st.sampled_from("ABC"), PLAIN, max_size=2)},
)
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "provider": NAME | st.none(),
        "model": NAME,
        "assistant_name": PLAIN.filter(bool),
        "skills": st.just("all") | st.lists(NAME, max_size=4, unique=True),
        "mcp_servers": st.dictionaries(NAME.filter(lambda name: name != "hermitcrab"), SERVER, max_size=3),
        "packages": st.fixed_dictionaries({}, optional={"apt": st.lists(st.sampled_from(["git", "jq"]), unique=True)}),
        "limits": st.fixed_dictionaries({}, optional={"pids": st.integers(16, 65_536) | st.none()}),
        "hardening": st.sampled_from(["standard", "strict"]),
    },
)


@given(DOCUMENT)
def test_a_written_config_reads_as_the_same_and_writes_as_the_same(document: dict[str, Any]) -> None:
    config = parse(document)
    written = to_document(config)
    assert parse(json.loads(json.dumps(written))) == config
    assert to_document(parse(written)) == written
    assert None not in written.values(), "a default is left out"


@given(DOCUMENT, NAME)
def test_what_is_set_is_there_and_what_is_unset_is_not(document: dict[str, Any], model: str) -> None:
    changed = with_value(document, "model", model)
    assert parse(changed).model == model
    assert parse(without_value(changed, "model")) == parse({k: v for k, v in document.items() if k != "model"})


def test_a_dotted_key_changes_one_thing_only() -> None:
    document = with_value(WHOLE, "mcp_servers.files.env.LEVEL", "info")
    assert parse(document).mcp_servers["files"].env == {"API_KEY": "placeholder", "LEVEL": "info"}
    assert WHOLE["mcp_servers"]["files"]["env"]["LEVEL"] == "debug", "the one that was given stays as it is"
    gone = without_value(WHOLE, "mcp_servers.files")
    assert set(parse(gone).mcp_servers) == {"remote"}
    assert without_value({"skills": "all"}, "skills.notes") == {"skills": "all"}
    assert without_value({}, "mcp_servers.files.env") == {}


@pytest.mark.parametrize("key", ["modle", "", ".", "limits.", "..", "model\0", "a.b.c.d.e", "limits.a.b.c.d"])
def test_a_key_that_there_cannot_be_is_refused(key: str) -> None:
    with pytest.raises(BadInputError) as caught:
        with_value({}, key, 1)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("modle", "Did you mean model?"),
        ("runner", "foreign_command"),
        ("anything", "There are provider, model"),
    ],
)
def test_a_key_that_is_none_is_refused_with_the_one_that_was_meant(key: str, hint: str) -> None:
    with pytest.raises(BadInputError, match="has no key") as caught:
        with_value(ContainerConfig(), key, "x")
    assert hint in caught.value.hint
