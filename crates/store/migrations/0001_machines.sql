-- Times are microseconds since 1970. JSON columns hold objects as text.

CREATE TABLE machine (
    seq                   INTEGER PRIMARY KEY AUTOINCREMENT,
    id                    TEXT NOT NULL UNIQUE,
    state                 TEXT NOT NULL,
    template              TEXT NOT NULL,
    layer_digest          TEXT NOT NULL,
    vcpus                 INTEGER NOT NULL,
    memory_mb             INTEGER NOT NULL,
    disk_mb               INTEGER,
    timeout_ms            INTEGER,
    timeout_action        TEXT NOT NULL,
    timeout_at            INTEGER,
    auto_resume           INTEGER NOT NULL,
    internet_access       INTEGER NOT NULL,
    allow_public_traffic  INTEGER NOT NULL,
    cwd                   TEXT NOT NULL,
    metadata              TEXT NOT NULL,
    -- Who asked: a key's id, or null for the platform itself.
    key_id                TEXT,
    -- The run or service the machine backs; null for a machine that a user asked for.
    owner                 TEXT,
    failure_reason        TEXT,
    created_at            INTEGER NOT NULL,
    started_at            INTEGER,
    ended_at              INTEGER
) STRICT;
CREATE INDEX machine_by_state ON machine (state, seq);
CREATE INDEX machine_by_end ON machine (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE event (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL,
    occurred_at    INTEGER NOT NULL,
    operation      TEXT NOT NULL,
    status         TEXT NOT NULL,
    machine_id     TEXT,
    actor_kind     TEXT NOT NULL,
    key_id         TEXT,
    reason         TEXT,
    error_code     TEXT,
    error_message  TEXT,
    metadata       TEXT
) STRICT;
CREATE INDEX event_by_machine ON event (machine_id, seq);

CREATE TABLE api_key (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    -- First letters of the key, to tell keys apart.
    prefix      TEXT NOT NULL,
    hash        BLOB NOT NULL UNIQUE,
    created_at  INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT;

-- One row for each idempotency key in use; `subject` is the id of what the first request made.
CREATE TABLE idempotency (
    key_id      TEXT NOT NULL,
    route       TEXT NOT NULL,
    key         TEXT NOT NULL,
    salt        BLOB NOT NULL,
    body_hash   BLOB NOT NULL,
    subject     TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (key_id, route, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_at);
CREATE INDEX idempotency_by_subject ON idempotency (subject);
