-- What an administrator decided on a group's containers: only what differs from the defaults, as one checked document.
-- A group without a row has the defaults. The provider of a group moves here, so that it stands in one place.
CREATE TABLE container_configs (
    agent_group_id TEXT PRIMARY KEY REFERENCES agent_groups (id) ON DELETE CASCADE,
    document TEXT NOT NULL CHECK (document GLOB '{*}'),
    updated_at TEXT NOT NULL
) STRICT;

INSERT INTO container_configs
    SELECT id, json_object('provider', lower(provider)), created_at FROM agent_groups WHERE provider <> '';

ALTER TABLE agent_groups DROP COLUMN provider;
