-- Volumes and where they are mounted. Times are microseconds since 1970.

CREATE TABLE volume (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    name            TEXT NOT NULL UNIQUE,
    -- `available`, or `deleting` while its directory is removed.
    state           TEXT NOT NULL,
    max_size_bytes  INTEGER,
    max_file_count  INTEGER,
    -- As they were counted last.
    used_bytes      INTEGER NOT NULL DEFAULT 0,
    inode_count     INTEGER NOT NULL DEFAULT 0,
    counted_at      INTEGER,
    key_id          TEXT,
    created_at      INTEGER NOT NULL
) STRICT;

-- One row for each place where a volume is mounted; gone once it is not.
CREATE TABLE volume_attachment (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL UNIQUE,
    volume_id      TEXT NOT NULL REFERENCES volume (id),
    machine_id     TEXT NOT NULL,
    mount_path     TEXT NOT NULL,
    read_only      INTEGER NOT NULL,
    subpath        TEXT,
    state          TEXT NOT NULL,
    error_code     TEXT,
    error_message  TEXT,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    UNIQUE (machine_id, mount_path)
) STRICT;
CREATE INDEX volume_attachment_by_volume ON volume_attachment (volume_id);
