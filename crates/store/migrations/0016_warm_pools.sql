-- Warm pools and the machines in them. Times are microseconds since 1970.

CREATE TABLE warm_pool (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    id                 TEXT NOT NULL UNIQUE,
    -- For people; several may have the same.
    name               TEXT NOT NULL,
    -- `enabled`, `disabled`, `draining` or `deleted`.
    state              TEXT NOT NULL,
    template_ref       TEXT NOT NULL,
    min_ready          INTEGER NOT NULL,
    max_ready          INTEGER NOT NULL,
    vcpus              INTEGER NOT NULL,
    memory_mb          INTEGER NOT NULL,
    disk_mb            INTEGER,
    idle_timeout_secs  INTEGER NOT NULL,
    stale_after_secs   INTEGER NOT NULL,
    -- `prefer`, `require` or `bypass`.
    checkout_policy    TEXT NOT NULL,
    -- `pinned_build` or `track_tag`.
    version_policy     TEXT NOT NULL,
    track_tag          TEXT,
    -- JSON objects.
    labels             TEXT NOT NULL,
    metadata           TEXT NOT NULL,
    -- What it makes machines of: a reference that means the same for ever, where there is one, and the digest.
    resolved           TEXT,
    build_id           TEXT,
    digest             TEXT,
    -- How often that changed, and what it was before.
    generation         INTEGER NOT NULL,
    previous_resolved  TEXT,
    previous_build_id  TEXT,
    previous_digest    TEXT,
    key_id             TEXT,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    enabled_at         INTEGER,
    disabled_at        INTEGER,
    drain_requested_at INTEGER,
    deleted_at         INTEGER
) STRICT;

-- Machines of pools. One that is handed out has a row in `machine` as well, from that moment on.
CREATE TABLE warm_instance (
    machine_id TEXT PRIMARY KEY,
    pool_id    TEXT NOT NULL REFERENCES warm_pool (id),
    -- `warming`, `ready`, `claimed` (about to be handed out), `handed_out` or `releasing`.
    state      TEXT NOT NULL,
    -- What it is: the digest of its layers, and its size.
    digest     TEXT NOT NULL,
    vcpus      INTEGER NOT NULL,
    memory_mb  INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    ready_at   INTEGER,
    claimed_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX warm_instance_by_pool ON warm_instance (pool_id);
CREATE INDEX warm_instance_by_digest ON warm_instance (digest);
