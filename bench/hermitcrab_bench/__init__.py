"""Benchmarks that anybody can run: `crab bench NAME --json`. Each module has `async def run(...) -> dict`."""
