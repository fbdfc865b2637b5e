-- Who an event is for, and what else it is about.

ALTER TABLE event ADD COLUMN audience TEXT NOT NULL DEFAULT 'customer';
ALTER TABLE event ADD COLUMN snapshot_id TEXT;
-- The machines that something was made from and into.
ALTER TABLE event ADD COLUMN source_machine_id TEXT;
ALTER TABLE event ADD COLUMN target_machine_id TEXT;

CREATE UNIQUE INDEX event_by_id ON event (id);
CREATE INDEX event_by_snapshot ON event (snapshot_id, seq) WHERE snapshot_id IS NOT NULL;
CREATE INDEX event_by_source ON event (source_machine_id, seq) WHERE source_machine_id IS NOT NULL;
CREATE INDEX event_by_target ON event (target_machine_id, seq) WHERE target_machine_id IS NOT NULL;
