-- Times are microseconds since 1970.

-- What install commands left: layers of machines, by what they depend on.
CREATE TABLE agent_artifact (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Also the name of its tree on disk.
    id          TEXT NOT NULL UNIQUE,
    -- Digest of everything that it depends on. The newest of a key counts.
    key         TEXT NOT NULL,
    size_bytes  INTEGER NOT NULL,
    -- Whether its tree is known to be on the disk.
    is_synced   INTEGER NOT NULL DEFAULT 0,
    created_at  INTEGER NOT NULL,
    used_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX agent_artifact_by_key ON agent_artifact (key, seq);

-- The artifact that is a layer of the run's machine.
ALTER TABLE agent_run ADD COLUMN artifact_id TEXT;
-- Whether the run makes an artifact for its version and nothing else.
ALTER TABLE agent_run ADD COLUMN is_build INTEGER NOT NULL DEFAULT 0;
CREATE INDEX agent_run_by_artifact ON agent_run (artifact_id) WHERE artifact_id IS NOT NULL;
-- The run that makes, or made, the version's artifact at its upload.
ALTER TABLE agent_version ADD COLUMN build_id TEXT;
-- When somebody deleted it: it stays for the runs that name it.
ALTER TABLE agent_version ADD COLUMN deleted_at INTEGER;
