-- Agents' questions, found from the chat in which each was asked. Whether one was answered, its session's mailbox says;
-- `answer_id` is the message that answered it, so that a repeat of that message is known.
CREATE TABLE questions (
    session_id TEXT NOT NULL,
    message_out_id TEXT NOT NULL,
    channel_type TEXT NOT NULL,
    platform_id TEXT NOT NULL,
    thread_id TEXT NOT NULL DEFAULT '',
    asked_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    answer_id TEXT,
    PRIMARY KEY (session_id, message_out_id)
) STRICT;

CREATE INDEX questions_by_chat ON questions (channel_type, platform_id, thread_id, asked_at);
CREATE INDEX questions_by_expiry ON questions (expires_at);
