-- A worker is free for its next cycle.
-- KEYS: 1 worker  2 wake (list)  3 ended_cycles (list)
-- ARGV: 1 cycle_id  2 stats (JSON)  3 ended cycle (JSON), or ""  4 max ended cycles
-- Returns: "released" or "unknown".
-- Atomic because a release that is asked for twice must not free the worker of a newer cycle.
if redis.call('HGET', KEYS[1], 'cycle_id') ~= ARGV[1] then return 'unknown' end
redis.call('HSET', KEYS[1], 'cycle_id', '', 'cycle', '', 'stats', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('LPUSH', KEYS[3], ARGV[3])
  redis.call('LTRIM', KEYS[3], 0, ARGV[4] - 1)
end
if redis.call('LLEN', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], 1) end
return 'released'
