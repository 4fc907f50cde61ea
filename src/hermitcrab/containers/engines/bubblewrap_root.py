"""What a bubblewrap container sees as its file system: opened, verified, and put in order.

Everything is opened here, by descriptor and without following a link, before bubblewrap runs. So a path that is swapped
in between changes nothing, and bubblewrap creates nothing through a folder that an agent can write.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.bubblewrap_arguments import Bind, Data, Folder, Link, Step, Tmpfs, enclosing, etc_files, ordered
from hermitcrab.model.container import ContainerSpec, Mount

_MERGED_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

_ETC_SHARED = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)
"""Of the host's /etc, read-only: what programs in /usr need to run, and nothing that tells of the host's users."""

_KERNEL_FOLDERS = frozenset({"proc", "dev", "sys"})

_LAST_STANDARD = 2

_PYTHON = re.compile(r"python(\d+)\.(\d+)", re.ASCII)

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Descriptors:
    """Open files that bubblewrap inherits, closed in the host together."""

    numbers: list[int] = field(default_factory=list)

    def keep(self, descriptor: int) -> int:
        if descriptor <= _LAST_STANDARD:
            # The host was started without one of its own; in the child this number is spoken for.
            taken, descriptor = descriptor, fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1)
            os.close(taken)
        self.numbers.append(descriptor)
        return descriptor

    def data(self, content: bytes) -> int:
        """A descriptor from which `content` can be read."""
        descriptor = self.keep(os.memfd_create("hermitcrab", os.MFD_CLOEXEC))
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def close(self) -> None:
        while self.numbers:
            os.close(self.numbers.pop())


@contextmanager
def descriptors() -> Iterator[Descriptors]:
    opened = Descriptors()
    try:
        yield opened
    finally:
        opened.close()


def steps(spec: ContainerSpec, uid: int, gid: int, opened: Descriptors) -> list[Step]:
    """The whole file system of the container, in the order in which it is built. Raises `spec-invalid`."""
    own = {mount.target: Bind(mount.target, _open_source(mount, opened), mount.writable) for mount in spec.mounts}
    targets = [*own, *spec.tmpfs]
    result = _host_root(opened) if spec.image is None else _image_root(spec.image, targets, opened)
    result += _etc(spec, uid, gid, result, opened)
    made = {step.target: step for step in result}
    for target in ordered(targets):
        # /tmp is where every program of any user expects to write.
        mode = 0o1777 if target == "/tmp" else 0o755  # noqa: S108  # in the container
        step = own.get(target) or Tmpfs(target, spec.limits.tmp_bytes, mode)
        _check_mount_point(step, made)
        made[target] = step
        result.append(step)
    if "/tmp" in spec.tmpfs and "/var" not in made:  # noqa: S108  # in the container
        result += [Folder("/var"), Link("/var/tmp", "/tmp")]  # noqa: S108  # in the container
    return result


def check_image(image: str | None) -> None:
    """Raise `image-unavailable` unless `image` is None or a folder with an unpacked root file system."""
    if image is None or (image.startswith("/") and Path(image, "usr").is_dir()):
        return
    raise EngineError(
        Failure.IMAGE_UNAVAILABLE,
        f"Bubblewrap has no image {image!r}",
        hint="It runs on the host's own /usr (no image set), or in the folder of an unpacked image, given by its "
        "absolute path; `crab image build --engine bubblewrap` makes one.",
    )


def python_of(image: str) -> tuple[int, int]:
    """The version of the `python3` in the folder of an unpacked image, as its link names it."""
    for folder in ("usr/local/bin", "usr/bin"):  # As they follow in the container's PATH.
        try:
            target = Path(image, folder, "python3").readlink()
        except OSError:
            continue
        if (found := _PYTHON.fullmatch(target.name)) is not None:
            return int(found[1]), int(found[2])
    raise EngineError(
        Failure.IMAGE_UNAVAILABLE,
        f"The image {image} has no python3 that is a link to one with its version in its name",
        hint="The runner needs Python 3.11 or newer in the image, as crab image build --engine bubblewrap makes it.",
    )


def _open_source(mount: Mount, opened: Descriptors) -> int:
    try:
        descriptor = opened.keep(os.open(mount.source, _LOOK))
    except FileNotFoundError as error:
        raise _invalid(f"{mount.source}, to be mounted on {mount.target}, does not exist") from error
    except OSError as error:
        raise _invalid(f"{mount.source}, to be mounted on {mount.target}: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISLNK(mode) or str(Path(f"/proc/self/fd/{descriptor}").readlink()) != mount.source:
        raise _invalid(f"{mount.source}, to be mounted on {mount.target}, leads over a symbolic link")
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        raise _invalid(f"{mount.source}, to be mounted on {mount.target}, is no folder, file or socket")
    return descriptor


def _check_mount_point(step: Bind | Tmpfs, made: Mapping[str, Step]) -> None:
    """Inside another mount the place must be there already and be of the same kind.

    Bubblewrap would make it otherwise, as the host, through whatever an agent put on the way.
    """
    outer = enclosing(step.target, made)
    match made.get(outer) if outer is not None else None:
        case Bind(target, descriptor, _):
            found = _mode_below(descriptor, step.target.removeprefix(target).strip("/"))
            is_folder = not isinstance(step, Bind) or stat.S_ISDIR(os.fstat(step.descriptor).st_mode)
            if found is None or stat.S_ISLNK(found) or stat.S_ISDIR(found) != is_folder:
                kind = "folder" if is_folder else "file"
                raise _invalid(f"There is no {kind} {step.target} inside the mount on {target} to be mounted on")
        case Link(target, _) | Data(target, _, _):
            raise _invalid(f"{step.target} lies below {target}, which is no folder")
        case _:
            pass


def _mode_below(descriptor: int, path: str) -> int | None:
    """The mode of what lies at `path` below the folder; None if nothing does, or a link is on the way."""
    here = os.dup(descriptor)
    try:
        for part in path.split("/"):
            inner = os.open(part, _LOOK, dir_fd=here)
            os.close(here)
            here = inner
        return os.fstat(here).st_mode
    except OSError:
        return None
    finally:
        os.close(here)


def _host_root(opened: Descriptors) -> list[Step]:
    """The host's programs, read-only. These paths are the operator's own, so links in them are followed."""
    result: list[Step] = [
        Link(inside, outside) if is_link else Bind(inside, _open_own(outside, opened))
        for inside, outside, is_link in _host_places()
    ]
    return [*result, Folder("/run")]


def host_programs() -> list[tuple[str, str]]:
    """What a container without an image sees of the host, read-only: where inside, and which path of the host's."""
    return [(inside, outside) for inside, outside, is_link in _host_places() if not is_link]


def _host_places() -> Iterator[tuple[str, str, bool]]:
    """Where inside, what of the host's is there, and whether only as a link, which leads elsewhere in here."""
    yield "/usr", "/usr", False
    for name in _MERGED_FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            yield str(path), str(path.readlink()), True
        elif path.is_dir():
            yield str(path), str(path), False
    for name in _ETC_SHARED:
        path = Path("/etc", name)
        if path.exists():
            # A link stays one, as programs learn the time zone's name from where it leads.
            yield str(path), str(path.resolve()), path.is_symlink() and path.resolve().is_relative_to("/usr")


def _open_own(path: str, opened: Descriptors) -> int:
    return opened.keep(os.open(Path(path).resolve(), _LOOK))


def _image_root(image: str, targets: list[str], opened: Descriptors) -> list[Step]:
    check_image(image)
    root = opened.keep(os.open(Path(image).resolve(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return list(_image_folder(root, "", targets, opened))


def _image_folder(folder: int, path: str, targets: list[str], opened: Descriptors) -> Iterator[Step]:
    """The entries of one folder of an image.

    An image is mounted read-only, and a place that it lacks could not be made in it. So a folder in which a mount point
    is missing is made anew, with the image's entries mounted in it one by one.
    """
    for name in sorted(os.listdir(folder)):
        inner = f"{path}/{name}"
        if (not path and name in _KERNEL_FOLDERS) or inner in targets:
            continue
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            yield Link(inner, os.readlink(name, dir_fd=folder))
        elif stat.S_ISREG(mode):
            yield Bind(inner, opened.keep(os.open(name, _LOOK, dir_fd=folder)))
        elif stat.S_ISDIR(mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            entry = opened.keep(os.open(name, flags, dir_fd=folder))
            below = [each.removeprefix(inner + "/") for each in targets if each.startswith(inner + "/")]
            if all(_mode_below(entry, each) is not None for each in below):
                yield Bind(inner, entry)
            else:
                yield Folder(inner)
                yield from _image_folder(entry, inner, targets, opened)


def _etc(spec: ContainerSpec, uid: int, gid: int, root: list[Step], opened: Descriptors) -> Iterator[Step]:
    etc = next((step for step in root if step.target == "/etc" and isinstance(step, Bind)), None)
    own = {mount.target for mount in spec.mounts}
    for target, text in etc_files(uid, gid, spec.name[:63]).items():
        if target in own:
            continue  # and nothing could be mounted over ours: it has no name any more
        if etc is None:
            if not any(step.target == target for step in root):
                yield Data(target, opened.data(text.encode()))
        elif stat.S_ISREG(_mode_below(etc.descriptor, target.removeprefix("/etc/")) or 0):
            yield Data(target, opened.data(text.encode()), over_existing=True)


def _invalid(message: str) -> EngineError:
    return EngineError(
        Failure.SPEC_INVALID, message, hint="Mounts lead from real host paths to places that are there or can be made."
    )
