from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from hermitcrab.observe.pauses import forget_imports, importing


def test_the_garbage_collector_passes_over_what_was_there() -> None:
    forget_imports()
    try:
        assert gc.get_freeze_count() > 10_000
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_garbage_is_collected_again_after_an_import_that_failed() -> None:
    def fail() -> None:
        with importing():
            assert not gc.isenabled()
            raise ImportError

    try:
        with pytest.raises(ImportError):
            fail()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


def test_structlog_is_imported_without_rich_which_others_may_import_later() -> None:
    code = (
        "import sys; from hermitcrab.observe.pauses import import_structlog; import_structlog();"
        "print('structlog' in sys.modules, 'rich' in sys.modules); import rich.console"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "True False\n"
