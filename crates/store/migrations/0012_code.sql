-- Code interpreter. Times are microseconds since 1970.

-- A kernel of a machine.
CREATE TABLE code_context (
    id          TEXT PRIMARY KEY,
    machine_id  TEXT NOT NULL,
    language    TEXT NOT NULL,
    cwd         TEXT NOT NULL,
    -- 1 for the one that code without a context runs in.
    is_default  INTEGER NOT NULL,
    -- Which process of the machine had its kernel last; NULL before the first use.
    instance    TEXT,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX code_context_by_machine ON code_context (machine_id, created_at);
CREATE UNIQUE INDEX code_context_default ON code_context (machine_id, language) WHERE is_default = 1;

CREATE TABLE code_run (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT,
    id                  TEXT NOT NULL UNIQUE,
    machine_id          TEXT NOT NULL,
    context_id          TEXT NOT NULL,
    status              TEXT NOT NULL,
    timeout_secs        INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    completed_at        INTEGER,
    cancel_requested_at INTEGER,
    expires_at          INTEGER NOT NULL,
    -- What it gave, as JSON.
    execution           TEXT,
    failure_reason      TEXT
) STRICT;
CREATE INDEX code_run_by_machine ON code_run (machine_id, seq);
CREATE INDEX code_run_open ON code_run (status) WHERE status IN ('queued', 'running');
CREATE INDEX code_run_by_expiry ON code_run (expires_at);

-- The bytes are in code/<id> of the data directory.
CREATE TABLE code_artifact (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    machine_id      TEXT NOT NULL,
    context_id      TEXT NOT NULL,
    execution_count INTEGER,
    kind            TEXT NOT NULL,
    mime_type       TEXT NOT NULL,
    name            TEXT NOT NULL,
    size_bytes      INTEGER NOT NULL,
    sha256          TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    -- As JSON, if there is more to say.
    metadata        TEXT
) STRICT;
CREATE INDEX code_artifact_by_machine ON code_artifact (machine_id, seq);
CREATE INDEX code_artifact_by_expiry ON code_artifact (expires_at);
