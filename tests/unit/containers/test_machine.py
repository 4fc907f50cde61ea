"""Whether the machine was restarted, by the id that the kernel gives to each of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermitcrab.containers.machine import remember, was_restarted


def test_a_machine_that_goes_on_was_not_restarted_and_another_run_of_it_was(tmp_path: Path) -> None:
    note, boot = tmp_path / "machine", tmp_path / "boot_id"
    boot.write_text("one\n")
    assert not was_restarted(note, boot_id=boot)
    remember(note, boot_id=boot)
    assert not was_restarted(note, boot_id=boot)
    boot.write_text("two\n")
    assert was_restarted(note, boot_id=boot)
    remember(note, boot_id=boot)
    assert not was_restarted(note, boot_id=boot)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_a_damaged_note_or_a_kernel_without_an_id_says_nothing(tmp_path: Path, content: bytes) -> None:
    note = tmp_path / "machine"
    note.write_bytes(content)
    assert not was_restarted(note)
    remember(note, boot_id=tmp_path / "nothing")
    assert note.read_bytes() == content
