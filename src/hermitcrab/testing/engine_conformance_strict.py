"""What hardening `strict` takes away from a program inside, on any real engine; the rest of `engine_conformance`."""

from __future__ import annotations

from hermitcrab.testing.engine_harness import EngineHarness


class EngineStrict:
    async def test_no_program_is_run_from_memory(self, harness: EngineHarness) -> None:
        script = "for f in /tmp /home/agent; do cp /bin/true $f/t && $f/t && echo ran in $f; done; exit 0"
        _, lines = await harness.run(harness.spec(script, hardening="strict"))
        assert [line for line in lines if line.startswith("ran")] == [] or not await harness.keeps("noexec-tmp")
        _, lines = await harness.run(harness.spec(script))
        assert [line for line in lines if line.startswith("ran")] == ["ran in /tmp", "ran in /home/agent"]
