"""The life of a session's container, from the wish for it to its end. `../runner.py` says who does what."""
