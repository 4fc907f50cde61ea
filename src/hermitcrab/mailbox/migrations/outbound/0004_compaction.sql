-- Every row up to `through_seq` was compacted or was found to need none; the next compaction begins there.
CREATE TABLE compaction (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    through_seq INTEGER NOT NULL
) STRICT;
