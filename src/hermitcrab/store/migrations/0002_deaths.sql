-- How containers ended, over all sessions, so that nobody has to look into every session's folder to know the newest.
-- The whole certificates, log lines included, are in the sessions' folders. Bounded by `store/deaths.py`.
-- `number` counts up with each end. A row outlives its session.
CREATE TABLE deaths (
    number INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    cause TEXT NOT NULL,
    text TEXT NOT NULL,
    ended_at TEXT NOT NULL,
    duration_s REAL,
    exit_code INTEGER,
    rows_returned INTEGER NOT NULL,
    UNIQUE (session_id, generation)
) STRICT;
