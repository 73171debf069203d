-- Note what a worker measured, and have waiting work looked at again.
-- KEYS: 1 worker  2 wake (list)
-- ARGV: 1 stats (JSON)
-- Returns: "reported" or "buried".
-- Atomic because a report after the burial would bring the worker's record back, without its place
-- among the workers: it would renew its lease for ever and never get a cycle.
if redis.call('EXISTS', KEYS[1]) == 0 then return 'buried' end
redis.call('HSET', KEYS[1], 'stats', ARGV[1])
if redis.call('LLEN', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], 1) end
return 'reported'
