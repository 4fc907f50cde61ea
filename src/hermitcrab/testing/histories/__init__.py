"""Histories of a whole host: what people, runners, channels and the machine do to it, by a seed, in virtual time.

`history.live(seed)` lives one and gives what it was; `invariants.py` says what must hold of every one.
"""
