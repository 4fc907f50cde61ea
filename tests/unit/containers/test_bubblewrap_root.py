"""What may be mounted where, decided on opened files; nothing is mounted here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hermitcrab.containers.engines.bubblewrap_root import check_image, descriptors, python_of, steps
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.bubblewrap_arguments import Bind, Data, Folder, Link, Step
from hermitcrab.model.container import ContainerSpec, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def spec(*mounts: Mount, image: str | None = None) -> ContainerSpec:
    return ContainerSpec(
        name="one",
        installation=InstallationId("here"),
        session=SessionId("s"),
        generation=Generation(1),
        image=image,
        argv=("true",),
        env={},
        mounts=mounts,
        uid=1000,
        gid=1000,
    )


def built(wanted: ContainerSpec) -> list[Step]:
    with descriptors() as opened:
        return steps(wanted, 1000, 1000, opened)


def refused(*mounts: Mount) -> str:
    before = set(names(Path("/proc/self/fd")))
    with pytest.raises(EngineError) as caught:
        built(spec(*mounts))
    assert caught.value.failure is Failure.SPEC_INVALID
    assert set(names(Path("/proc/self/fd"))) <= before
    return caught.value.message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def test_what_is_opened_is_closed(folder: Path, open_files: Callable[[], set[str]]) -> None:
    before = open_files()
    assert built(spec(Mount(source=str(folder), target="/workspace")))
    assert open_files() <= before


def test_the_hosts_programs_are_read_only(folder: Path) -> None:
    found = built(spec(Mount(source=str(folder), target="/workspace", writable=True, mount_class=MountClass.WORK)))
    assert [step.target for step in found if isinstance(step, Bind) and step.writable] == ["/workspace"]
    assert "/usr" in {step.target for step in found}


def test_nothing_of_the_hosts_users_or_network_is_shared() -> None:
    shared = {step.target for step in built(spec()) if isinstance(step, Bind | Link)}
    assert not shared & {"/etc/passwd", "/etc/shadow", "/etc/hosts", "/etc/resolv.conf", "/etc/gitconfig", "/etc/ssh"}
    assert "/etc/passwd" in {step.target for step in built(spec()) if isinstance(step, Data)}


def test_a_missing_source_is_refused(folder: Path) -> None:
    assert "does not exist" in refused(Mount(source=str(folder / "missing"), target="/x"))


def test_a_link_as_a_source_is_refused(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")
    assert "symbolic link" in refused(Mount(source=str(folder / "link"), target="/x"))


def test_a_link_on_the_way_to_a_source_is_refused(folder: Path) -> None:
    (folder / "real/inner").mkdir(parents=True)
    (folder / "link").symlink_to("real")
    assert "symbolic link" in refused(Mount(source=str(folder / "link/inner"), target="/x"))


@pytest.mark.parametrize("source", ["/dev/null", "work", "/tmp/../etc"])
def test_a_source_that_is_no_plain_path_of_a_file_or_folder_is_refused(source: str) -> None:
    assert refused(Mount(source=source, target="/x"))


def test_a_pipe_as_a_source_is_refused_without_being_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert "no folder, file or socket" in refused(Mount(source=str(folder / "pipe"), target="/x"))


class TestInsideAnotherMount:
    def nested(self, folder: Path, target: str, *, given: str = "given") -> tuple[Mount, Mount]:
        (folder / "outer").mkdir(exist_ok=True)
        (folder / "given").mkdir(exist_ok=True)
        (folder / "file").touch()
        return (
            Mount(source=str(folder / "outer"), target="/workspace", writable=True, mount_class=MountClass.WORK),
            Mount(source=str(folder / given), target=f"/workspace/{target}"),
        )

    def test_a_place_that_is_there_is_used(self, folder: Path) -> None:
        mounts = self.nested(folder, "a/b")
        (folder / "outer/a/b").mkdir(parents=True)
        targets = [step.target for step in built(spec(*reversed(mounts)))]
        assert targets.index("/workspace") < targets.index("/workspace/a/b")

    def test_a_missing_place_is_refused_and_not_made(self, folder: Path) -> None:
        assert "to be mounted on" in refused(*self.nested(folder, "a"))
        assert names(folder / "outer") == []

    def test_a_planted_link_as_the_place_is_refused(self, folder: Path) -> None:
        mounts = self.nested(folder, "a")
        (folder / "outer/a").symlink_to(folder / "given")
        assert refused(*mounts)

    def test_a_planted_link_on_the_way_to_the_place_is_refused(self, folder: Path) -> None:
        mounts = self.nested(folder, "a/b")
        (folder / "given/b").mkdir()
        (folder / "outer/a").symlink_to("../given")
        assert refused(*mounts)

    def test_a_file_on_a_folder_and_a_folder_on_a_file_are_refused(self, folder: Path) -> None:
        (folder / "outer/folder").mkdir(parents=True)
        (folder / "outer/file").touch()
        assert "no file" in refused(*self.nested(folder, "folder", given="file"))
        assert "no folder" in refused(*self.nested(folder, "file"))

    def test_a_place_below_a_link_of_the_root_is_refused(self, folder: Path) -> None:
        if not Path("/bin").is_symlink():
            pytest.skip("/bin is a folder of its own here")
        assert "is no folder" in refused(Mount(source=str(folder), target="/bin/new"))


class TestImage:
    @pytest.fixture
    def image(self, folder: Path) -> Path:
        root = folder / "image"
        for name in ("usr/bin", "etc/ssl", "opt/tool", "proc", "dev", "tmp", "workspace"):
            (root / name).mkdir(parents=True)
        (root / "bin").symlink_to("usr/bin")
        (root / "etc/passwd").write_text("root:x:0:0::/:\n")
        return root

    def test_its_entries_are_mounted_read_only(self, image: Path) -> None:
        found = {step.target: step for step in built(spec(image=str(image)))}
        assert found["/bin"] == Link("/bin", "usr/bin")
        assert isinstance(found["/usr"], Bind)
        assert not found["/usr"].writable
        assert not {"/proc", "/dev"} & set(found)

    def test_the_users_name_is_put_over_its_own(self, image: Path) -> None:
        found = [step for step in built(spec(image=str(image))) if isinstance(step, Data)]
        assert [(step.target, step.over_existing) for step in found] == [("/etc/passwd", True)]

    def test_a_file_that_the_spec_mounts_there_comes_alone(self, image: Path, folder: Path) -> None:
        (folder / "passwd").touch()
        mount = Mount(source=str(folder / "passwd"), target="/etc/passwd")
        found = [step for step in built(spec(mount, image=str(image))) if step.target == "/etc/passwd"]
        assert [type(step) for step in found] == [Bind]

    def test_a_folder_that_lacks_a_mount_point_is_made_anew_around_its_entries(self, image: Path, folder: Path) -> None:
        mount = Mount(source=str(folder), target="/opt/hermitcrab/python")
        found = {step.target: step for step in built(spec(mount, image=str(image)))}
        assert found["/opt"] == Folder("/opt")
        assert isinstance(found["/opt/tool"], Bind)
        assert isinstance(found["/opt/hermitcrab/python"], Bind)

    def test_a_mount_point_that_it_has_leaves_the_folder_whole(self, image: Path, folder: Path) -> None:
        found = {
            step.target: step for step in built(spec(Mount(source=str(folder), target="/opt/tool"), image=str(image)))
        }
        assert isinstance(found["/opt"], Bind)

    @pytest.mark.parametrize("name", ["debian:12", "relative/folder", "/no/such/folder", ""])
    def test_what_is_no_folder_with_a_root_is_unavailable(self, name: str) -> None:
        with pytest.raises(EngineError) as caught:
            check_image(name)
        assert caught.value.failure is Failure.IMAGE_UNAVAILABLE
        assert caught.value.hint

    def test_the_host_and_a_root_are_available(self, image: Path) -> None:
        check_image(None)
        check_image(str(image))


def test_small_files_have_what_was_given(folder: Path) -> None:
    with descriptors() as opened:
        number = opened.data(b"content")
        assert os.read(number, 100) == b"content"
        assert stat.S_ISREG(os.fstat(number).st_mode)
        assert number > 2


def test_the_python_of_an_image_is_the_one_that_its_path_finds_first(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no python3") as raised:
        python_of(str(tmp_path))
    assert raised.value.failure is Failure.IMAGE_UNAVAILABLE
    for folder, target, known in (("usr/bin", "python3.11", (3, 11)), ("usr/local/bin", "/usr/x/python3.13", (3, 13))):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "python3").symlink_to(target)
        assert python_of(str(tmp_path)) == known
