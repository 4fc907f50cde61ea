"""What the host must know of the terminal channel before it loads it. Imports nothing heavy."""

from __future__ import annotations

CHANNEL_TYPE = "terminal"
"""The channel type of every address that leads to a person at this machine's terminal."""

RUNTIME = "hermitcrab.channels.terminal.runtime:TerminalChannel"

DEFAULT_GROUP = "main"
"""The agent group that `crab chat` talks to when it is not told another."""
