-- Uploads in parts. Times are microseconds since 1970.

CREATE TABLE upload (
    id              TEXT PRIMARY KEY,
    machine_id      TEXT NOT NULL,
    -- The user of the machine that it is made as.
    user            TEXT,
    kind            TEXT NOT NULL,
    source_kind     TEXT NOT NULL,
    -- As asked for until the machine has said which path it is.
    target_path     TEXT NOT NULL,
    -- The file in the machine that takes the parts, once there is one.
    staging         TEXT,
    -- Whether that file may still be there.
    is_staged       INTEGER NOT NULL DEFAULT 1,
    content_length  INTEGER NOT NULL,
    part_size       INTEGER NOT NULL,
    part_count      INTEGER NOT NULL,
    -- The lowest part that is missing; part_count when none is.
    next_part       INTEGER NOT NULL DEFAULT 0,
    accepted_bytes  INTEGER NOT NULL DEFAULT 0,
    conflict        TEXT NOT NULL,
    whole_sha256    TEXT,
    status          TEXT NOT NULL,
    published_bytes INTEGER,
    published_files INTEGER,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX upload_by_machine ON upload (machine_id);
CREATE INDEX upload_by_expiry ON upload (expires_at);

-- The parts that are there.
CREATE TABLE upload_part (
    upload_id TEXT NOT NULL REFERENCES upload (id) ON DELETE CASCADE,
    part      INTEGER NOT NULL,
    sha256    TEXT NOT NULL,
    PRIMARY KEY (upload_id, part)
) STRICT, WITHOUT ROWID;
