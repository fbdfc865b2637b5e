-- Tenants: who shares nothing with others. Times are microseconds since 1970.
-- Foreign keys are off while this runs: tables whose constraints change are made anew.

CREATE TABLE tenant (
    id                  TEXT PRIMARY KEY,
    -- Also the namespace of its templates.
    name                TEXT NOT NULL UNIQUE,
    -- Whether its keys are refused.
    is_suspended        INTEGER NOT NULL DEFAULT 0,
    -- The most it may have; NULL for no limit.
    max_machines        INTEGER,
    max_vcpus           INTEGER,
    max_memory_mb       INTEGER,
    max_disk_mb         INTEGER,
    -- The most requests a second, and how many at once after a pause; NULL for no limit.
    requests_per_second INTEGER,
    request_burst       INTEGER,
    created_at          INTEGER NOT NULL,
    -- Its name is its id then: what only is remembered of it still refers to it.
    deleted_at          INTEGER
) STRICT, WITHOUT ROWID;
-- Everything of before belongs to this one.
INSERT INTO tenant (id, name, created_at)
VALUES ('tnt_default', 'default', CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER));

-- Keys of before were the operator's.
ALTER TABLE api_key ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
ALTER TABLE api_key ADD COLUMN scope TEXT NOT NULL DEFAULT 'operator';
ALTER TABLE api_key ADD COLUMN expires_at INTEGER;
ALTER TABLE api_key ADD COLUMN last_used_at INTEGER;
-- The key that this one replaced.
ALTER TABLE api_key ADD COLUMN rotated_from TEXT;
CREATE INDEX api_key_by_tenant ON api_key (tenant_id);

ALTER TABLE machine ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
CREATE INDEX machine_by_tenant ON machine (tenant_id, state, seq);
ALTER TABLE snapshot ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
CREATE INDEX snapshot_by_tenant ON snapshot (tenant_id, seq);
ALTER TABLE warm_pool ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
ALTER TABLE webhook ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
ALTER TABLE template_blob ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
ALTER TABLE template_build ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
-- It outlives what it is about, the tenant too.
ALTER TABLE event ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default';
CREATE INDEX event_by_tenant ON event (tenant_id, seq);

ALTER TABLE agent_deployment ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'tnt_default' REFERENCES tenant (id);
DROP INDEX agent_deployment_by_name;
CREATE UNIQUE INDEX agent_deployment_by_name ON agent_deployment (tenant_id, name) WHERE status <> 'deleted';

CREATE TABLE new_volume (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    tenant_id       TEXT NOT NULL REFERENCES tenant (id),
    name            TEXT NOT NULL,
    -- `available`, or `deleting` while its directory is removed.
    state           TEXT NOT NULL,
    max_size_bytes  INTEGER,
    max_file_count  INTEGER,
    -- As they were counted last.
    used_bytes      INTEGER NOT NULL DEFAULT 0,
    inode_count     INTEGER NOT NULL DEFAULT 0,
    counted_at      INTEGER,
    key_id          TEXT,
    created_at      INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
) STRICT;
INSERT INTO new_volume (seq, id, tenant_id, name, state, max_size_bytes, max_file_count, used_bytes, inode_count, counted_at,
    key_id, created_at)
SELECT seq, id, 'tnt_default', name, state, max_size_bytes, max_file_count, used_bytes, inode_count, counted_at, key_id,
    created_at FROM volume;
DROP TABLE volume;
ALTER TABLE new_volume RENAME TO volume;

CREATE TABLE new_template (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenant (id),
    -- One segment, in the tenant's namespace.
    name       TEXT NOT NULL,
    visibility TEXT NOT NULL DEFAULT 'private',
    created_at INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
) STRICT;
INSERT INTO new_template (id, tenant_id, name, visibility, created_at)
SELECT id, 'tnt_default', name, visibility, created_at FROM template;
DROP TABLE template;
ALTER TABLE new_template RENAME TO template;

CREATE TABLE new_template_alias (
    tenant_id   TEXT NOT NULL,
    name        TEXT NOT NULL,
    template_id TEXT NOT NULL REFERENCES template (id) ON DELETE CASCADE,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, name)
) STRICT, WITHOUT ROWID;
INSERT INTO new_template_alias (tenant_id, name, template_id, created_at)
SELECT 'tnt_default', name, template_id, created_at FROM template_alias;
DROP TABLE template_alias;
ALTER TABLE new_template_alias RENAME TO template_alias;

CREATE TABLE new_template_claim (
    token      TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL,
    name       TEXT NOT NULL,
    key_id     TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
) STRICT, WITHOUT ROWID;
INSERT INTO new_template_claim (token, tenant_id, name, key_id, expires_at)
SELECT token, 'tnt_default', name, key_id, expires_at FROM template_claim;
DROP TABLE template_claim;
ALTER TABLE new_template_claim RENAME TO template_claim;
