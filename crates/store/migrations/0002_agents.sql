-- Times are microseconds since 1970. JSON columns hold text.

CREATE TABLE agent_deployment (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    id                 TEXT NOT NULL UNIQUE,
    name               TEXT NOT NULL,
    mode               TEXT NOT NULL,
    -- active, paused, deleted
    status             TEXT NOT NULL,
    description        TEXT,
    metadata           TEXT NOT NULL,
    active_version_id  TEXT,
    -- Number of the newest version.
    versions           INTEGER NOT NULL DEFAULT 0,
    key_id             TEXT,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    deleted_at         INTEGER
) STRICT;
-- A deleted deployment gives its name back.
CREATE UNIQUE INDEX agent_deployment_by_name ON agent_deployment (name) WHERE status <> 'deleted';

CREATE TABLE agent_version (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    deployment_id   TEXT NOT NULL REFERENCES agent_deployment (id),
    number          INTEGER NOT NULL,
    bundle_digest   TEXT NOT NULL,
    -- Name of the bundle's tree on disk.
    bundle          TEXT NOT NULL,
    -- The config as the wire has it.
    config          TEXT NOT NULL,
    -- The manifest without its entries; the whole of it is in agent_manifest.
    manifest_head   TEXT NOT NULL,
    -- created, ready, failed, superseded
    status          TEXT NOT NULL,
    cache_policy    TEXT NOT NULL,
    failure_reason  TEXT,
    created_at      INTEGER NOT NULL,
    ready_at        INTEGER,
    UNIQUE (deployment_id, number)
) STRICT;

-- Apart from the versions: it may be tens of megabytes.
CREATE TABLE agent_manifest (
    version_id  TEXT PRIMARY KEY REFERENCES agent_version (id),
    manifest    TEXT NOT NULL
) STRICT;

CREATE TABLE agent_run (
    seq                  INTEGER PRIMARY KEY AUTOINCREMENT,
    id                   TEXT NOT NULL UNIQUE,
    deployment_id        TEXT NOT NULL REFERENCES agent_deployment (id),
    version_id           TEXT NOT NULL REFERENCES agent_version (id),
    status               TEXT NOT NULL,
    input                TEXT NOT NULL,
    -- Whether it was given values of environment variables; the values are never here.
    has_envs             INTEGER NOT NULL,
    machine_id           TEXT,
    install_process_id   INTEGER,
    install_exit_code    INTEGER,
    process_id           INTEGER,
    exit_code            INTEGER,
    failure_reason       TEXT,
    -- For how long the machine is kept when the run fails, in seconds; null for not at all.
    retain_seconds       INTEGER,
    retained_until       INTEGER,
    cancel_requested_at  INTEGER,
    cancel_reason        TEXT,
    -- Output of the process that runs now, in bytes, that is in the log or in the two columns below.
    output_offset        INTEGER NOT NULL DEFAULT 0,
    -- The begin of a line whose end has not come yet.
    partial_stdout       BLOB,
    partial_stderr       BLOB,
    -- Events in the log.
    log_count            INTEGER NOT NULL DEFAULT 0,
    -- Bytes of output in the log; there is a limit.
    log_bytes            INTEGER NOT NULL DEFAULT 0,
    -- What it left behind, once it ended.
    outputs              TEXT,
    key_id               TEXT,
    idempotency_key      TEXT,
    created_at           INTEGER NOT NULL,
    updated_at           INTEGER NOT NULL,
    started_at           INTEGER,
    completed_at         INTEGER
) STRICT;
CREATE INDEX agent_run_by_deployment ON agent_run (deployment_id, seq);
CREATE INDEX agent_run_by_machine ON agent_run (machine_id) WHERE machine_id IS NOT NULL;
CREATE INDEX agent_run_unfinished ON agent_run (seq) WHERE completed_at IS NULL;

CREATE TABLE agent_log (
    -- The run's seq in the upper 32 bits, the event's number in the lower: one run's events lie together, in order.
    place       INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    level       TEXT NOT NULL,
    event_type  TEXT NOT NULL,
    source      TEXT NOT NULL,
    message     TEXT NOT NULL,
    metadata    TEXT,
    -- Whether the run had a machine then.
    in_machine  INTEGER NOT NULL,
    process_id  INTEGER
) STRICT;
