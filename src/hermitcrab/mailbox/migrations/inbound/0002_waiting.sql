-- What waits is found without a look at what was answered, however long the history is.
CREATE INDEX messages_in_waiting ON messages_in (seq) WHERE status = 'pending';
