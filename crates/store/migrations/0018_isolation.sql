-- Which engine a machine was made by: `native`, `gvisor`, …; NULL for machines of before.
ALTER TABLE machine ADD COLUMN isolation TEXT;
