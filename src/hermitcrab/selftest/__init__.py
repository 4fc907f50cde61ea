"""`crab selftest`: the installation tried out on a scratch home, with real engines and, if wanted, with faults.

`schedule.py` says when which fault comes, `acts.py` does the faults, on what `disk.py`, `daemons.py` and
`jumping_clock.py` put at their disposal; `talker.py` has the conversations. `tally.py` counts what was lost, doubled or
out of order, `growth.py` compares what the host holds, `leftovers.py` looks at what is left. `run.py` is the whole, and
`outcome.py` what it came to.
"""
