-- The image that was made for a group with its packages, and why the last attempt to make one failed, if it did.
-- `image` is the engine's id of it, or a folder's path; NULL until a build was successful. A failed build changes only
-- the failure, so that the image from before stays in use.
CREATE TABLE group_images (
    agent_group_id TEXT PRIMARY KEY REFERENCES agent_groups (id) ON DELETE CASCADE,
    engine TEXT NOT NULL,
    image TEXT,
    packages TEXT NOT NULL,
    built_at TEXT,
    failure TEXT,
    failed_at TEXT
) STRICT;
