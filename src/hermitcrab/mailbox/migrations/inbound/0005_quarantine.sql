-- Messages that were set aside because they ended container after container, until a person releases them.
CREATE INDEX messages_in_quarantined ON messages_in (seq) WHERE status = 'quarantined';
