"""Bounds that both ends of a link keep. A figure without a unit in its name is a count."""

PROTOCOL = 1
"""The protocol that this code speaks."""

OLDEST_PROTOCOL = 1
"""The oldest protocol that this code still understands."""

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""One frame, newline included. Larger things are cut into several frames by their sender."""

MAX_CONTENT_BYTES = 1024 * 1024
"""The content of one message, as compact JSON."""

MAX_NESTING = 200
"""How deep lists and objects may lie in each other in the content of one message, the content itself counted. Far from
what any Python can read: each version gives up elsewhere, and the two ends of a link may run on different ones."""

MAX_ID_CHARACTERS = 200
MAX_IDS_IN_A_FRAME = 256
MAX_ROWS_IN_A_FRAME = 64
MAX_OUTS_IN_A_COMPLETION = 16

MAX_INTEGER = 2**53
"""Integers beyond this lose digits in other JSON implementations, so neither side may send one."""

MAX_FILE_BYTES = 32 * 1024 * 1024
"""One file that an agent sends."""

MAX_FILES_IN_A_MESSAGE = 10
MAX_FILES_UNDER_WAY = 4
"""Files that one runner may have begun and not ended."""

FILE_CHUNK_BYTES = 128 * 1024
"""What a chunk of a file carries at most, before its coding."""

MIN_FILE_CHUNK_BYTES = 4096
"""What every chunk but a file's last carries at least, so that a file is a bounded number of frames."""

FILE_WINDOW = 4
"""Chunks that a runner may send ahead of what the host has."""

MAX_STATE_BYTES = 1024 * 1024
"""The session's key-value state in all: what a provider needs to resume, not a database."""

INBOUND_WINDOW = 256
"""Rows that the host pushes ahead of the runner's completions: the back-pressure towards the runner."""

BEAT_INTERVAL_S = 5.0
"""A runner says at least this often that it lives, unless its welcome tells it another interval."""

BEATS_BEFORE_SILENT = 6
"""As many beats are missed before a runner counts as dead."""
