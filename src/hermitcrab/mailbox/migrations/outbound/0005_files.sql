-- Files that the agent sends: where the host keeps each until it is delivered.
CREATE TABLE out_files (
    message_out_id TEXT NOT NULL REFERENCES messages_out (id),
    position INTEGER NOT NULL,
    handle TEXT NOT NULL,
    name TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (message_out_id, position)
) STRICT, WITHOUT ROWID;
