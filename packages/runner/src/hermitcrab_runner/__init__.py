"""The runner: the program in a container that feeds messages to an agent harness and sends back what it says.

The core is threads, sockets and the standard library, so that a waiting session costs little memory. Only a provider
may bring more, and loads it lazily.
"""

__version__ = "0.1.0"
