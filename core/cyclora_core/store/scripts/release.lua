-- A worker is free for its next cycle.
-- KEYS: 1 worker  2 wake (list)
-- ARGV: 1 cycle_id  2 stats (JSON)
-- Returns: "released" or "unknown".
-- Atomic because a release that is asked for twice must not free the worker of a newer cycle.
if redis.call('HGET', KEYS[1], 'cycle_id') ~= ARGV[1] then return 'unknown' end
redis.call('HSET', KEYS[1], 'cycle_id', '', 'cycle', '', 'stats', ARGV[2])
if redis.call('LLEN', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], 1) end
return 'released'
