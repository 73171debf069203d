-- Note whether a worker shall have nothing left.
-- KEYS: 1 worker  2 worker_lease  3 wake (list)  4 audit (zset)
-- ARGV: 1 "1" or ""  2 audit entry  3 its at_ms  4 ms from which on others are kept
--       5 rank up to which they go
-- Returns: "noted" or "unknown".
-- Atomic because of a worker that is buried in between nothing may be left.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 0 then
  return 'unknown'
end
redis.call('HSET', KEYS[1], 'is_draining', ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[4])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, ARGV[5])
if redis.call('LLEN', KEYS[3]) == 0 then redis.call('LPUSH', KEYS[3], 1) end
return 'noted'
