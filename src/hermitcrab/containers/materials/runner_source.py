"""The runner's source as containers see it: a compiled snapshot in the home, named after its content.

Containers cannot write where they read it, so that uncompiled source would be compiled at every start (100 ms); and a
host that is upgraded under running containers must not change what they run.
"""

from __future__ import annotations

import compileall
import hashlib
import py_compile
import shutil
import tempfile
from pathlib import Path

import hermitcrab_runner
import hermitcrab_wire

_UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH
_PACKAGES = (hermitcrab_runner, hermitcrab_wire)


def snapshot(folder: Path) -> Path:
    """`folder`/runner-<digest>, made if it is not there. Blocks."""
    sources = [_folder(package.__file__) for package in _PACKAGES]
    target = folder / f"runner-{_digest(sources)}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=folder, prefix=".runner-") as scratch:
        made = Path(scratch) / "src"
        for source in sources:
            shutil.copytree(source, made / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        # By hash and unchecked: a container need not even look whether source and code agree.
        compileall.compile_dir(made, quiet=2, invalidation_mode=_UNCHECKED, stripdir=str(made), prependdir="/app/src")
        for each in (made, *made.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # Otherwise another host process on this home was faster.
                raise
    return target


def _digest(sources: list[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted(source.rglob("*.py")):
            digest.update(f"{path.relative_to(source.parent)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _folder(init_file: str | None) -> Path:
    assert init_file is not None
    return Path(init_file).resolve().parent
