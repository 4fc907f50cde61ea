-- When the host had the message; `timestamp` is what the platform says of it.
ALTER TABLE messages_in ADD COLUMN received_at TEXT;

CREATE INDEX messages_in_failed ON messages_in (seq) WHERE status IN ('failed', 'paused');
