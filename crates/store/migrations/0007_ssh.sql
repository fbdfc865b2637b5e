-- Who may log in to a machine over SSH. Times are microseconds since 1970.

CREATE TABLE ssh_grant (
    -- The key id of the certificate.
    id          TEXT PRIMARY KEY,
    machine_id  TEXT NOT NULL,
    -- The user of the machine.
    user        TEXT NOT NULL,
    -- SHA-256 of the public key that was certified.
    fingerprint TEXT NOT NULL,
    -- The API key that asked.
    key_id      TEXT,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX ssh_grant_by_machine ON ssh_grant (machine_id, expires_at);
CREATE INDEX ssh_grant_by_expiry ON ssh_grant (expires_at);
