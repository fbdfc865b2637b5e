-- The rules for traffic out of a machine, JSON; NULL for all or nothing, as internet_access says.

ALTER TABLE machine ADD COLUMN egress TEXT;
