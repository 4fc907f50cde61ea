-- Who claimed a row, and why it failed if it did.
ALTER TABLE processing_ack ADD COLUMN turn TEXT;
ALTER TABLE processing_ack ADD COLUMN generation INTEGER;
ALTER TABLE processing_ack ADD COLUMN reason TEXT;

CREATE INDEX processing_ack_claimed ON processing_ack (message_id) WHERE status = 'processing';

-- What became of each message that the agent said. `sender` is the host process that is sending it.
CREATE TABLE deliveries (
    message_out_id TEXT PRIMARY KEY REFERENCES messages_out (id),
    seq INTEGER NOT NULL,
    status TEXT NOT NULL
        CHECK (status IN ('queued', 'sending', 'delivered', 'failed', 'refused', 'unknown-after-crash')),
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TEXT,
    sender TEXT,
    reason TEXT,
    platform_message_id TEXT,
    updated_at TEXT NOT NULL
) STRICT;

CREATE INDEX deliveries_queued ON deliveries (seq) WHERE status = 'queued';
CREATE INDEX deliveries_sending ON deliveries (seq) WHERE status = 'sending';

-- Of messages that another system wrote here, nobody knows whether they were delivered.
INSERT INTO deliveries (message_out_id, seq, status, reason, updated_at)
SELECT id, coalesce(seq, 0), 'unknown-after-crash', 'imported', strftime('%Y-%m-%dT%H:%M:%fZ', 'now') FROM messages_out;
