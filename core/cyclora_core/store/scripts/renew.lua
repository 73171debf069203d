-- Renew a worker's lease, unless it was buried meanwhile.
-- KEYS: 1 worker  2 worker_lease
-- ARGV: 1 lease_ms
-- Returns: "alive" or "buried".
-- Atomic because a lease renewed after the burial would bring a fenced worker back to life.
if redis.call('EXISTS', KEYS[1]) == 0 then return 'buried' end
redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
return 'alive'
