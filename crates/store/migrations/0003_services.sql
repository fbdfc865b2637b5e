-- Times are microseconds since 1970. JSON columns hold text.

CREATE TABLE agent_service (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    id                 TEXT NOT NULL UNIQUE,
    deployment_id      TEXT NOT NULL REFERENCES agent_deployment (id),
    -- The version that is wanted now; that of a backing is in its run.
    version_id         TEXT NOT NULL REFERENCES agent_version (id),
    -- starting, ready, unhealthy, stopping, stopped, failed
    status             TEXT NOT NULL,
    -- Where it listens in its machine.
    port               INTEGER NOT NULL,
    -- Its port on the host.
    gateway_port       INTEGER,
    -- The run of its backing that takes traffic.
    serving_run_id     TEXT,
    -- The run of its newest backing.
    run_id             TEXT,
    restart_count      INTEGER NOT NULL DEFAULT 0,
    readiness          TEXT NOT NULL,
    failure_reason     TEXT,
    -- Values of its environment variables, sealed with a key that is not in here; null when it has none or has ended.
    envs               BLOB,
    -- Each request to restart counts one up; the supervisor notes which it has followed.
    wanted             INTEGER NOT NULL DEFAULT 1,
    followed           INTEGER NOT NULL DEFAULT 0,
    restart_reason     TEXT,
    stop_requested_at  INTEGER,
    stop_reason        TEXT,
    -- For how long the machine is kept after that, in seconds; null for not at all.
    stop_retain        INTEGER,
    -- The log of all its backings.
    log_count          INTEGER NOT NULL DEFAULT 0,
    -- Bytes of output since event log_mark; what is before log_first was dropped.
    log_bytes          INTEGER NOT NULL DEFAULT 0,
    log_mark           INTEGER NOT NULL DEFAULT 0,
    log_first          INTEGER NOT NULL DEFAULT 0,
    key_id             TEXT,
    idempotency_key    TEXT,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    started_at         INTEGER,
    stopped_at         INTEGER
) STRICT;
CREATE INDEX agent_service_by_deployment ON agent_service (deployment_id, seq);
CREATE INDEX agent_service_unfinished ON agent_service (seq) WHERE stopped_at IS NULL;

-- The service that a run backs; null for a run that a user asked for.
ALTER TABLE agent_run ADD COLUMN service_id TEXT;
-- How often its entry point was started again.
ALTER TABLE agent_run ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
-- The run's timeline, with created_at, started_at and completed_at.
ALTER TABLE agent_run ADD COLUMN machine_at INTEGER;
ALTER TABLE agent_run ADD COLUMN unpacked_at INTEGER;
ALTER TABLE agent_run ADD COLUMN install_started_at INTEGER;
ALTER TABLE agent_run ADD COLUMN installed_at INTEGER;
ALTER TABLE agent_run ADD COLUMN first_output_at INTEGER;
CREATE INDEX agent_run_by_service ON agent_run (service_id) WHERE service_id IS NOT NULL;
