from __future__ import annotations

import gc

from hermitcrab.observe.pauses import forget_imports


def test_the_garbage_collector_passes_over_what_was_there() -> None:
    forget_imports()
    try:
        assert gc.get_freeze_count() > 10_000
        assert gc.isenabled()
    finally:
        gc.unfreeze()
