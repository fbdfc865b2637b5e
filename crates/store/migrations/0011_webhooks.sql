-- Webhooks: who is told of events, and what became of each telling. Times are microseconds since 1970.

CREATE TABLE webhook (
    seq                   INTEGER PRIMARY KEY AUTOINCREMENT,
    id                    TEXT NOT NULL UNIQUE,
    url                   TEXT NOT NULL,
    -- JSON array of words.
    operations            TEXT NOT NULL,
    -- Sealed: nothing here opens it.
    secret                BLOB NOT NULL,
    enabled               INTEGER NOT NULL,
    -- Nobody sees it any more; it goes once its deliveries have.
    deleted               INTEGER NOT NULL DEFAULT 0,
    created_at            INTEGER NOT NULL,
    updated_at            INTEGER NOT NULL,
    last_delivery_at      INTEGER,
    last_delivery_status  TEXT,
    last_error            TEXT
) STRICT;

-- One row for each event and webhook, written with the event.
CREATE TABLE webhook_delivery (
    seq                   INTEGER PRIMARY KEY AUTOINCREMENT,
    id                    TEXT NOT NULL UNIQUE,
    webhook_id            TEXT NOT NULL,
    event_seq             INTEGER NOT NULL,
    -- 'queued', 'succeeded' or 'dead_letter'
    state                 TEXT NOT NULL,
    -- Later ones need not wait for it.
    aside                 INTEGER NOT NULL DEFAULT 0,
    attempt_count         INTEGER NOT NULL DEFAULT 0,
    created_at            INTEGER NOT NULL,
    next_attempt_at       INTEGER,
    last_attempt_at       INTEGER,
    last_response_status  INTEGER,
    last_error            TEXT
) STRICT;
CREATE INDEX webhook_delivery_by_webhook ON webhook_delivery (webhook_id, seq);
CREATE INDEX webhook_delivery_queued ON webhook_delivery (webhook_id, aside, seq) WHERE state = 'queued';
CREATE INDEX webhook_delivery_by_event ON webhook_delivery (event_seq);

CREATE TABLE webhook_attempt (
    delivery_seq     INTEGER NOT NULL,
    number           INTEGER NOT NULL,
    id               TEXT NOT NULL,
    attempted_at     INTEGER NOT NULL,
    duration_ms      INTEGER NOT NULL,
    response_status  INTEGER,
    error_code       TEXT,
    error_message    TEXT,
    PRIMARY KEY (delivery_seq, number)
) STRICT, WITHOUT ROWID;
