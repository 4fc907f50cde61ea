-- Sessions that are on their way to another home: their messages are refused and their containers not started, whatever
-- happens to this host meanwhile. `token` is one move, so that its repeat is known at the other end.
CREATE TABLE held_sessions (
    session_id TEXT PRIMARY KEY,
    token TEXT NOT NULL,
    why TEXT NOT NULL,
    since TEXT NOT NULL
) STRICT;

-- Sessions that came from another home, and by which move.
CREATE TABLE imported_sessions (
    session_id TEXT PRIMARY KEY,
    token TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
