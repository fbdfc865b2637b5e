-- Ports of machines that are seen from outside. Times are microseconds since 1970.

-- The host that programs are told instead of the client's; null for none.
ALTER TABLE machine ADD COLUMN mask_request_host TEXT;

CREATE TABLE preview_port (
    machine_id    TEXT NOT NULL,
    port          INTEGER NOT NULL,
    -- Its port on the host; null where previews have names.
    gateway_port  INTEGER,
    -- Whether requests need no token of a grant.
    published     INTEGER NOT NULL,
    PRIMARY KEY (machine_id, port)
) STRICT, WITHOUT ROWID;

CREATE TABLE preview_grant (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    machine_id       TEXT NOT NULL,
    port             INTEGER NOT NULL,
    -- Whether a proxy sends the token.
    proxy            INTEGER NOT NULL,
    http             INTEGER NOT NULL,
    websocket        INTEGER NOT NULL,
    -- The API key that asked.
    key_id           TEXT,
    created_at       INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    revoked_at       INTEGER,
    -- What passed; written every few seconds.
    http_count       INTEGER NOT NULL,
    websocket_count  INTEGER NOT NULL,
    bytes_in         INTEGER NOT NULL,
    bytes_out        INTEGER NOT NULL,
    first_used_at    INTEGER,
    last_used_at     INTEGER,
    last_error_code  TEXT,
    last_error_at    INTEGER,
    updated_at       INTEGER NOT NULL
) STRICT;
CREATE INDEX preview_grant_by_machine ON preview_grant (machine_id, seq);
CREATE INDEX preview_grant_by_expiry ON preview_grant (expires_at);
