"""Serves a foreign v2 runner: its two database files on one side, our link on the other.

The foreign runner is a program that knows no link. It polls `inbound.db` and writes `outbound.db`; the shim runs beside
it in the same container, keeps these files as it expects them, and says to the host what happens in them.
"""
