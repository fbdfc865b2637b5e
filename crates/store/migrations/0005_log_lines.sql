-- Output is kept by the piece, not by the line: a row holds so many lines, divided by line ends, and with them the
-- numbers from its own on.
ALTER TABLE agent_log ADD COLUMN lines INTEGER NOT NULL DEFAULT 1;
