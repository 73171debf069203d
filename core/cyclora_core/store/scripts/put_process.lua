-- Note with which settings a process runs.
-- KEYS: 1 process_settings (hash)
-- ARGV: 1 kind and name (JSON)  2 record
-- Returns: 1.
-- A script because a process must be able to start however full the store is.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
