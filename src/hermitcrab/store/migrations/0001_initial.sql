CREATE TABLE installation (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    id TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE agent_groups (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    folder TEXT NOT NULL UNIQUE,
    provider TEXT,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE messaging_groups (
    id TEXT PRIMARY KEY,
    channel_type TEXT NOT NULL,
    platform_id TEXT NOT NULL,
    name TEXT,
    is_group INTEGER NOT NULL DEFAULT 0 CHECK (is_group IN (0, 1)),
    created_at TEXT NOT NULL,
    UNIQUE (channel_type, platform_id)
) STRICT;

CREATE TABLE wirings (
    id TEXT PRIMARY KEY,
    messaging_group_id TEXT NOT NULL REFERENCES messaging_groups (id),
    agent_group_id TEXT NOT NULL REFERENCES agent_groups (id),
    engage_mode TEXT NOT NULL CHECK (engage_mode IN ('pattern', 'mention', 'mention-sticky')),
    engage_pattern TEXT,
    session_mode TEXT NOT NULL CHECK (session_mode IN ('shared', 'per-thread', 'agent-shared')),
    sender_scope TEXT NOT NULL CHECK (sender_scope IN ('all', 'known')),
    ignored_message_policy TEXT NOT NULL CHECK (ignored_message_policy IN ('drop', 'accumulate')),
    priority INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    UNIQUE (messaging_group_id, agent_group_id)
) STRICT;

CREATE INDEX wirings_by_agent_group ON wirings (agent_group_id);

-- A target is a messaging group or an agent group. A target that is gone is passed over when destinations are read.
CREATE TABLE destinations (
    agent_group_id TEXT NOT NULL REFERENCES agent_groups (id),
    name TEXT NOT NULL,
    target_type TEXT NOT NULL CHECK (target_type IN ('channel', 'agent')),
    target_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (agent_group_id, name)
) STRICT;

CREATE INDEX destinations_by_target ON destinations (target_type, target_id);

-- `generation` is the last that was claimed; whether its container runs, only the engine knows.
-- `unsettled` > 0: there may be work: rows to answer or to deliver, or claims to give back. Looked at when a host starts.
-- It counts the reasons, so that who finds nothing to do cannot wipe out a reason that came meanwhile.
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    agent_group_id TEXT NOT NULL REFERENCES agent_groups (id),
    messaging_group_id TEXT REFERENCES messaging_groups (id),
    thread_id TEXT CHECK (thread_id <> ''),
    provider TEXT,
    generation INTEGER NOT NULL DEFAULT 0 CHECK (generation >= 0),
    unsettled INTEGER NOT NULL DEFAULT 0 CHECK (unsettled >= 0),
    created_at TEXT NOT NULL,
    last_active_at TEXT
) STRICT;

-- One conversation has one session. NULLs are equal here, which they would not be in a plain UNIQUE.
CREATE UNIQUE INDEX sessions_by_conversation
    ON sessions (agent_group_id, coalesce(messaging_group_id, ''), coalesce(thread_id, ''));

CREATE INDEX sessions_by_messaging_group ON sessions (messaging_group_id);

CREATE INDEX sessions_unsettled ON sessions (id) WHERE unsettled > 0;
