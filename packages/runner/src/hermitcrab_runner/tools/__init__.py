"""What an agent can do in the middle of a turn besides answering: the same tools for every harness."""
