-- Templates. Times are microseconds since 1970.

CREATE TABLE template (
    id         TEXT PRIMARY KEY,
    -- One segment, in the default namespace.
    name       TEXT NOT NULL UNIQUE,
    visibility TEXT NOT NULL DEFAULT 'private',
    created_at INTEGER NOT NULL
) STRICT;

-- Names that templates had before.
CREATE TABLE template_alias (
    name        TEXT PRIMARY KEY,
    template_id TEXT NOT NULL REFERENCES template (id) ON DELETE CASCADE,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Names that are kept for somebody.
CREATE TABLE template_claim (
    token      TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    key_id     TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Builds. One whose template was deleted stays for as long as a machine needs its layers.
CREATE TABLE template_build (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    template_id TEXT NOT NULL,
    -- The template's name when it was asked for.
    name        TEXT NOT NULL,
    key_id      TEXT NOT NULL,
    status      TEXT NOT NULL,
    backend     TEXT NOT NULL,
    source_type TEXT NOT NULL,
    -- JSON: what only is told back.
    view        TEXT NOT NULL,
    -- What was asked, without secrets, sealed: variables may be some.
    definition  BLOB NOT NULL,
    -- Ids of layers of steps that it needs, JSON list.
    layers      TEXT NOT NULL DEFAULT '[]',
    -- What machines start from, sealed, once it is ready; and the digest of it.
    artifact    BLOB,
    digest      TEXT,
    -- How many entries its log has.
    entries     INTEGER NOT NULL DEFAULT 0,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    deleted_at  INTEGER
) STRICT;
CREATE INDEX template_build_by_template ON template_build (template_id, seq);
CREATE INDEX template_build_by_digest ON template_build (digest) WHERE digest IS NOT NULL;
CREATE INDEX template_build_unfinished ON template_build (status) WHERE status IN ('waiting', 'building');

CREATE TABLE template_tag (
    template_id TEXT NOT NULL REFERENCES template (id) ON DELETE CASCADE,
    tag         TEXT NOT NULL,
    build_id    TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (template_id, tag)
) STRICT, WITHOUT ROWID;

-- What builds say.
CREATE TABLE template_log (
    build_seq INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    -- JSON
    entry     TEXT NOT NULL,
    PRIMARY KEY (build_seq, number)
) STRICT, WITHOUT ROWID;

-- Layers that steps wrote, by what they depend on. The newest of a key counts.
CREATE TABLE template_layer (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Also the name of its tree on disk.
    id         TEXT NOT NULL UNIQUE,
    key        TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    -- Whether its tree is known to be on the disk.
    is_synced  INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX template_layer_by_key ON template_layer (key, seq);

-- Files of build contexts.
CREATE TABLE template_blob (
    id         TEXT PRIMARY KEY,
    sha256     TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    -- Whether its bytes are there.
    is_stored  INTEGER NOT NULL DEFAULT 0,
    -- Whether others than who asked for it may be given it.
    is_shared  INTEGER NOT NULL,
    used_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX template_blob_by_sha256 ON template_blob (sha256);

-- Whom commands in a machine run as, where its template says so.
CREATE TABLE machine_user (
    machine_id TEXT PRIMARY KEY REFERENCES machine (id) ON DELETE CASCADE,
    user       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
