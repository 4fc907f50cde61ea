"""`crab selftest`: the installation tried out on a scratch home, with real engines and, if wanted, with faults.

`schedule.py` says when which fault comes, `talker.py` has the conversations, `acts.py` does the faults, `tally.py`
counts what was lost, doubled or out of order, `leftovers.py` looks at what is left, `run.py` is the whole.
"""
