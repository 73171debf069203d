-- End a session on its client's word; the first reason stands.
-- KEYS: 1 session  2 live_sessions (zset: session -> last sign of life, ms)
--       3 ending_sessions (zset: session -> since, ms)  4 custom_losses_of_session (hash)
--       5 custom_losses_of_tenant (hash)
-- ARGV: 1 session_id  2 reason  3 detail  4 now_ms
-- Returns: "ended", "already" or "unknown".
-- Atomic because a session that ended without being noted for cleaning up would leave its models
-- and files behind if whoever ended it dies here; and a custom loss that is stored after the others
-- were deleted would be kept for ever.
if redis.call('EXISTS', KEYS[1]) == 0 then return 'unknown' end
if redis.call('HSETNX', KEYS[1], 'finished_reason', ARGV[2]) == 0 then return 'already' end
redis.call('HSET', KEYS[1], 'finished_detail', ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[5], ARGV[1])
return 'ended'
