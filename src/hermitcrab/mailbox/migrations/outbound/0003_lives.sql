-- A message waits in the lane of its address: what is said to one place keeps its order and holds up no other place.
CREATE TABLE deliveries_in_lanes (
    message_out_id TEXT PRIMARY KEY REFERENCES messages_out (id),
    seq INTEGER NOT NULL,
    lane TEXT NOT NULL,
    status TEXT NOT NULL CHECK (
        status IN (
            'scheduled', 'queued', 'sending', 'delivered', 'confirmed', 'failed', 'refused', 'unknown-after-crash'
        )
    ),
    attempts INTEGER NOT NULL DEFAULT 0,
    parts_sent INTEGER NOT NULL DEFAULT 0,
    queued_at TEXT NOT NULL,
    next_attempt_at TEXT,
    sender TEXT,
    reason TEXT,
    platform_message_id TEXT,
    asks INTEGER NOT NULL DEFAULT 0,
    untold INTEGER NOT NULL DEFAULT 0,
    updated_at TEXT NOT NULL
) STRICT;

INSERT INTO deliveries_in_lanes (
    message_out_id, seq, lane, status, attempts, queued_at, next_attempt_at, sender, reason, platform_message_id,
    updated_at
)
SELECT
    message_out_id, deliveries.seq,
    coalesce(channel_type, '') || char(31) || coalesce(platform_id, '') || char(31) || coalesce(thread_id, ''),
    status, attempts, updated_at, next_attempt_at, sender, reason, platform_message_id, updated_at
FROM deliveries JOIN messages_out ON messages_out.id = message_out_id;

DROP TABLE deliveries;
ALTER TABLE deliveries_in_lanes RENAME TO deliveries;

CREATE INDEX deliveries_lanes ON deliveries (lane, seq) WHERE status = 'queued';
CREATE INDEX deliveries_queued ON deliveries (seq) WHERE status = 'queued';
CREATE INDEX deliveries_scheduled ON deliveries (next_attempt_at) WHERE status = 'scheduled';
CREATE INDEX deliveries_sending ON deliveries (seq) WHERE status = 'sending';
CREATE INDEX deliveries_ended_badly ON deliveries (seq) WHERE status IN ('failed', 'refused', 'unknown-after-crash');
CREATE INDEX deliveries_untold ON deliveries (seq) WHERE untold = 1;
CREATE INDEX deliveries_asking ON deliveries (lane, seq) WHERE asks = 1;

-- Each time that a channel was called, and each claim that did not simply end with an answer.
CREATE TABLE delivery_attempts (
    message_out_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    began_at TEXT NOT NULL,
    ended_at TEXT,
    outcome TEXT,
    reason TEXT,
    PRIMARY KEY (message_out_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE claims (
    message_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    turn TEXT NOT NULL,
    claimed_at TEXT NOT NULL,
    ended_at TEXT,
    outcome TEXT,
    PRIMARY KEY (message_id, generation, turn)
) STRICT, WITHOUT ROWID;

-- What was said to a message, found from the message.
CREATE INDEX messages_out_answers ON messages_out (in_reply_to) WHERE in_reply_to IS NOT NULL;
