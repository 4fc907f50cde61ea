"""Registries of a test's own on loopback: Debian, npm and Python packages that it makes, and that nobody else has."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PackageArchive:
    """Packages are added at any time; what is asked for later finds them."""

    folder: Path
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """For package tools to see these registries and no other."""
        return {
            "PIP_INDEX_URL": f"{self.url}/pip",
            "PIP_CONFIG_FILE": "/dev/null",
            "npm_config_registry": f"{self.url}/npm/",
            "npm_config_userconfig": "/dev/null",
        }

    @property
    def apt_sources(self) -> Path:
        return self.folder / "sources.list"

    def add_wheel(self, name: str, version: str = "1.0", *, program: str = "") -> None:
        """A package with a module of its name and, with `program`, a console script of its name."""
        module = name.replace("-", "_")
        dist = f"{module}-{version}.dist-info"
        files = {
            f"{module}.py": f"def main():\n    print({program!r})\n",
            f"{dist}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{dist}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{dist}/entry_points.txt": f"[console_scripts]\n{name} = {module}:main\n" if program else "",
        }
        files[f"{dist}/RECORD"] = "".join(f"{each},,\n" for each in (*files, f"{dist}/RECORD"))
        folder = self.folder / "pip" / name
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)

    def add_npm(
        self,
        name: str,
        version: str = "1.0.0",
        *,
        program: str = "",
        install_script: str = "",
        dependencies: Mapping[str, str] | None = None,
    ) -> None:
        """A package whose program, of its name, prints `program`. `install_script` is run when it is installed."""
        manifest = {
            "name": name,
            "version": version,
            "bin": {name: "main.js"},
            "dependencies": dict(dependencies or {}),
            "scripts": {"postinstall": install_script} if install_script else {},
        }
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            main = f"#!/usr/bin/env node\nconsole.log({json.dumps(program)})\n"
            for path, text in (("package/package.json", json.dumps(manifest)), ("package/main.js", main)):
                _add(tar, path, text.encode(), 0o755)
        folder = self.folder / "npm"
        folder.mkdir(parents=True, exist_ok=True)
        archive = f"{name}-{version}.tgz"
        (folder / archive).write_bytes(content.getvalue())
        digest = base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
        dist = {"tarball": f"{self.url}/npm/{archive}", "integrity": f"sha512-{digest}"}
        about = {
            "name": name,
            "dist-tags": {"latest": version},
            "versions": {version: {**manifest, "hasInstallScript": bool(install_script), "dist": dist}},
        }
        (folder / name).write_text(json.dumps(about))

    def add_deb(
        self, name: str, version: str = "1.0", *, files: Mapping[str, tuple[str, int]], install_script: str = ""
    ) -> None:
        """A package with `files` (content and mode by path) that runs `install_script` as root when it is installed."""
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: a test <test@invalid>\n"
            f"Description: made by a test\n"
        )
        scripts = {"./control": (control, 0o644)}
        if install_script:
            scripts["./postinst"] = (f"#!/bin/sh\n{install_script}\n", 0o755)
        parts = {
            "debian-binary": b"2.0\n",
            "control.tar.gz": _tar(scripts),
            "data.tar.gz": _tar({f"./{path}": each for path, each in files.items()}),
        }
        content = b"!<arch>\n"
        for part, data in parts.items():
            content += f"{part:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
            content += b"\n" * (len(data) % 2)
        folder = self.folder / "apt"
        folder.mkdir(parents=True, exist_ok=True)
        archive = f"{name}_{version}_all.deb"
        (folder / archive).write_bytes(content)
        entry = (
            f"{control}Filename: ./{archive}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
        )
        with (folder / "Packages").open("a") as packages:
            packages.write(entry)
        listed = (folder / "Packages").read_bytes()
        release = f"SHA256:\n {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
        (folder / "Release").write_text(f"Date: Thu, 01 Jan 2026 00:00:00 UTC\n{release}")
        self.apt_sources.write_text(f"deb [trusted=yes] {self.url}/apt ./\n")


@contextmanager
def package_archive(folder: Path) -> Iterator[PackageArchive]:
    """Serve `folder` on a port of loopback for as long as the context is open."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield PackageArchive(folder, f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the base class's name
        del format, arguments


def _tar(files: Mapping[str, tuple[str, int]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path, (text, mode) in files.items():
            _add(tar, path, text.encode(), mode)
    return gzip.compress(content.getvalue())


def _add(tar: tarfile.TarFile, path: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
