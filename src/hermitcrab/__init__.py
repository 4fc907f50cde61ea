"""A host for AI agents: each conversation has an agent in a container of its own."""

__version__ = "0.1.0"
