-- Machines' states that are kept: those of hibernated machines, those that machines are made of, and those that a fork
-- passes through.

CREATE TABLE snapshot (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    -- Whose state it is.
    machine_id    TEXT NOT NULL,
    -- hibernate, snapshot or fork.
    kind          TEXT NOT NULL,
    -- writing: the engine may be at it, or was when the server died. ready: all of it is there.
    state         TEXT NOT NULL,
    -- The memory is on the host and goes with it; there is nothing on disk.
    in_place      INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    -- Of what is on disk.
    digest        TEXT,
    -- What a machine made of it is like, JSON. No values of environment variables: those are in the state itself.
    shape         TEXT NOT NULL,
    metadata      TEXT NOT NULL,
    key_id        TEXT,
    -- The machine that a fork makes of it.
    child_id      TEXT,
    -- How whoever asked for it spells a machine: sandbox or machine.
    noun          TEXT NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshot_by_machine ON snapshot (machine_id, seq);

-- What the engine was given, JSON, without the values of environment variables; NULL before this version.
ALTER TABLE machine ADD COLUMN spec TEXT;
-- What a paused machine goes on from.
ALTER TABLE machine ADD COLUMN snapshot_id TEXT;
