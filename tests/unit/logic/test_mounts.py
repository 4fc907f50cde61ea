"""The decision about one mount, over trees that are made up: identities stand for what lies where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.mounts import (
    EXTRA,
    REFUSED_NAMES,
    Allowlist,
    Decision,
    Facts,
    ForbiddenPlace,
    Identity,
    InnerMount,
    MountRequest,
    Place,
    Root,
    decide,
    name_problem,
    overlap,
    path_problem,
)
from hermitcrab.model.container import MountClass

Parts = tuple[str, ...]


def place(path: str, **others: object) -> Place:
    """A folder whose parts are what their paths say."""
    whole = PurePosixPath(path)
    chain = tuple(identity(str(each)) for each in (*reversed(whole.parents), whole))
    return replace(Place(path=path, chain=chain, kind="folder"), **others)  # type: ignore[arg-type]


def identity(path: str) -> Identity:
    return Identity(1, int.from_bytes(path.encode(), "big"))


def missing(path: str) -> Place:
    whole = place(path)
    return replace(whole, chain=whole.chain[:-1], problem=f"{path} does not exist")


def judge(
    path: str = "/data/code",
    *roots: Root,
    forbidden: tuple[ForbiddenPlace, ...] = (),
    inner: tuple[InnerMount, ...] = (),
    there: Place | None = None,
    taken: frozenset[str] = frozenset(),
    refused_names: tuple[str, ...] = (),
    **wishes: object,
) -> Decision:
    allowlist = Allowlist(roots=roots or (Root(path="/data"),), refused_names=refused_names)
    facts = Facts(
        place=there or place(path),
        roots=tuple(place(root.path) for root in allowlist.roots),
        forbidden=forbidden,
        inner_mounts=inner,
        taken=taken,
    )
    return decide(replace(MountRequest(path=path), **wishes), allowlist, facts)  # type: ignore[arg-type]


def refused_by(decision: Decision) -> list[str]:
    assert not decision.allowed
    return [step.rule for step in decision.steps if not step.passed]


def test_a_folder_in_a_root_is_mounted_read_only_under_its_own_name() -> None:
    decision = judge()
    assert decision.mount is not None
    assert (decision.mount.source, decision.mount.target) == ("/data/code", f"{EXTRA}/code")
    assert decision.mount.writable is False
    assert decision.mount.mount_class is MountClass.EXTRA
    assert decision.chain == place("/data/code").chain
    assert decision.reason == ""


@pytest.mark.parametrize("root_writes", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_writing_needs_the_root_and_the_request(root_writes: bool, asked: bool) -> None:
    decision = judge("/data/code", Root(path="/data", write=root_writes), write=asked)
    assert decision.mount is not None
    assert decision.mount.writable is (root_writes and asked)
    assert decision.steps[-1].saw.startswith("read-write" if root_writes and asked else "read-only")


def test_without_an_allow_list_nothing_is_mounted() -> None:
    decision = decide(MountRequest(path="/data"), None, Facts(place=place("/data")))
    assert refused_by(decision) == ["allow-list"]


def test_what_is_missing_or_behind_a_link_is_refused_with_the_walk_s_own_words() -> None:
    decision = judge(there=missing("/data/code"))
    assert refused_by(decision) == ["found"]
    assert decision.reason == "/data/code does not exist"


def test_only_folders_and_files_with_one_name_are_mounted() -> None:
    assert judge(there=place("/data/code", kind="file")).allowed
    assert refused_by(judge(there=place("/data/code", kind="other"))) == ["kind"]
    assert refused_by(judge(there=place("/data/code", kind="file", links=2))) == ["kind"]


def test_refused_names_match_whole_names_in_any_case() -> None:
    assert refused_by(judge("/data/.SSH/config")) == ["names"]
    assert refused_by(judge("/data/credentials")) == ["names"]
    assert refused_by(judge("/data/.env.local", name="env")) == ["names"]
    assert refused_by(judge("/data/safe.kdbx", refused_names=("*.KDBX",))) == ["names"]
    assert judge("/data/environment").allowed
    assert judge("/data/my-credentials-lib").allowed
    assert set(REFUSED_NAMES) >= {".ssh", ".aws", ".gnupg", ".kube", ".netrc", "id_rsa"}


def test_two_mounts_never_share_a_target() -> None:
    assert refused_by(judge(taken=frozenset({"code"}))) == ["target free"]
    assert judge(taken=frozenset({"code"}), name="code2").allowed


def test_a_root_serves_the_groups_that_it_names() -> None:
    root = Root(path="/data", groups=("family",))
    assert judge("/data/code", root, group="family").allowed
    assert refused_by(judge("/data/code", root, group="work")) == ["root"]
    assert refused_by(judge("/data/code", root)) == ["root"]


def test_the_nearest_root_decides_alone() -> None:
    outer, inner = Root(path="/data", write=True), Root(path="/data/code", groups=("family",))
    for roots in ((outer, inner), (inner, outer)):
        assert refused_by(judge("/data/code/x", *roots, group="work")) == ["root"]
        decision = judge("/data/code/x", *roots, group="family", write=True)
        assert decision.mount is not None
        assert decision.mount.writable is False
        assert judge("/data/other", *roots, group="work").allowed


def test_a_root_that_is_missing_or_no_folder_opens_nothing() -> None:
    request, allowlist = MountRequest(path="/data"), Allowlist(roots=(Root(path="/data"),))
    for root in (missing("/data"), place("/data", kind="file")):
        decision = decide(request, allowlist, Facts(place=place("/data"), roots=(root,)))
        assert refused_by(decision) == ["root"]


@pytest.mark.parametrize("path", ["/data/vault", "/data", "/data/vault/inner/deep"])
def test_a_forbidden_place_what_holds_it_and_what_it_holds_are_refused(path: str) -> None:
    forbidden = (ForbiddenPlace(what="keys", place=place("/data/vault")),)
    decision = judge(path, forbidden=forbidden)
    assert refused_by(decision) == ["forbidden places"]
    assert "/data/vault: keys" in decision.reason


def test_a_folder_in_which_a_forbidden_place_could_be_made_is_refused() -> None:
    forbidden = (ForbiddenPlace(what="keys", place=missing("/data/code/vault")),)
    assert refused_by(judge(forbidden=forbidden)) == ["forbidden places"]
    assert judge("/data/code/other", forbidden=forbidden).allowed


def test_another_name_for_a_forbidden_place_is_the_same_place() -> None:
    forbidden = (ForbiddenPlace(what="keys", place=place("/home/u/vault")),)
    bound = place("/data/code", chain=(*place("/data").chain, identity("/home/u/vault")))
    assert refused_by(judge(there=bound, forbidden=forbidden)) == ["forbidden places"]


def test_a_part_of_a_forbidden_place_bound_elsewhere_is_known_by_its_origin() -> None:
    forbidden = (ForbiddenPlace(what="keys", place=place("/home/u/vault", origin=("8:1", "/u/vault"))),)
    for origin in (("8:1", "/u/vault/part"), ("8:1", "/u/vault"), ("8:1", "/u"), ("8:1", "/")):
        assert refused_by(judge(there=place("/data/code", origin=origin), forbidden=forbidden)) == ["forbidden places"]
    for origin in (("8:2", "/u/vault"), ("8:1", "/u/vaults"), ("8:1", "/v")):
        assert judge(there=place("/data/code", origin=origin), forbidden=forbidden).allowed


def test_what_may_be_read_is_refused_only_to_writers() -> None:
    forbidden = (ForbiddenPlace(what="programs", place=place("/data/code/bin"), may_be_read=True),)
    assert judge(forbidden=forbidden).allowed
    assert refused_by(judge(forbidden=forbidden, write=True)) == ["forbidden places"]


def test_a_mount_below_the_place_is_judged_too() -> None:
    vault = ForbiddenPlace(what="keys", place=place("/home/u/vault"))
    for found, allowed in (
        (InnerMount(place=place("/data/code/x"), file_system="ext4"), True),
        (InnerMount(place=place("/data/code/x"), file_system="proc"), False),
        (InnerMount(place=missing("/data/code/x"), file_system="ext4"), False),
        (
            InnerMount(place=place("/data/code/x", chain=(identity("/home/u/vault"),)), file_system="ext4"),
            False,
        ),
        (InnerMount(place=place("/data/code/x", chain=(identity("/home/u"),)), file_system="ext4"), False),
    ):
        decision = judge(inner=(found,), forbidden=(vault,))
        assert decision.allowed is allowed
        assert allowed or refused_by(decision) == ["inner mounts"]


@pytest.mark.parametrize("path", ["data", "/data/../etc", "/data/a:b", "/data/a\0b", "/data/a\nb", "/" + "a" * 4100])
def test_paths_outside_of_the_grammar_are_never_looked_at(path: str) -> None:
    assert path_problem(path)
    assert refused_by(judge(path, there=place("/data/code"), name="x")) == ["path"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a..b", "/etc", "a/b", "a:b", "a b", ".git", "-rf", "ä", "a\n", "a" * 65]
)
def test_names_outside_of_the_grammar_are_refused(name: str) -> None:
    assert name_problem(name)
    assert refused_by(judge(name=name)) == ["container path"]


@given(st.text(max_size=80))
def test_whatever_is_asked_for_the_target_is_one_name_below_extra(name: str) -> None:
    decision = judge(name=name)
    if decision.mount is not None:
        target = PurePosixPath(decision.mount.target)
        assert str(target) == decision.mount.target
        assert target.parent == PurePosixPath(EXTRA)
        assert target.name == name
        assert not {":", "\0", "\n", ","} & set(decision.mount.target)


_PARTS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4).map(tuple)


def _path(parts: Parts) -> str:
    return "/" + "/".join(parts)


@given(_PARTS, _PARTS)
def test_places_touch_exactly_when_one_is_on_the_way_to_the_other(mine: Parts, theirs: Parts) -> None:
    how = overlap(place(_path(mine)), place(_path(theirs)))
    if mine == theirs:
        assert how == "is"
    elif theirs[: len(mine)] == mine:
        assert how == "contains"
    elif mine[: len(theirs)] == theirs:
        assert how == "lies in"
    else:
        assert how == ""


@given(
    _PARTS,
    st.lists(st.tuples(_PARTS, st.booleans(), st.sampled_from(["*", "g", "h"])), max_size=4),
    st.lists(_PARTS, max_size=3),
    st.booleans(),
    st.sampled_from([None, "g", "h"]),
)
def test_no_allow_list_opens_what_is_forbidden_or_outside(
    wanted: Parts, roots: list[tuple[Parts, bool, str]], forbidden: list[Parts], write: bool, group: str | None
) -> None:
    decision = judge(
        _path(wanted),
        *(Root(path=_path(parts), write=writes, groups=(whom,)) for parts, writes, whom in roots),
        Root(path="/elsewhere"),
        forbidden=tuple(ForbiddenPlace(what="x", place=place(_path(parts))) for parts in forbidden),
        name="x",
        write=write,
        group=group,
    )
    over = [each for each in roots if wanted[: len(each[0])] == each[0]]
    if decision.mount is not None:
        assert not any(wanted[: len(each)] == each or each[: len(wanted)] == wanted for each in forbidden)
        assert any(whom in {"*", group} for _, _, whom in over)
        assert not decision.mount.writable or (write and any(writes for _, writes, _ in over))
    else:
        assert decision.reason
