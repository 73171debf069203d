-- Note where an administrator wants a model to be; an earlier wish is forgotten.
-- KEYS: 1 model  2 placements (set)  3 wake (list)  4 audit (zset)
-- ARGV: 1 model_id  2 wish  3 audit entry  4 its at_ms  5 ms from which on others are kept
--       6 rank up to which they go
-- Returns: "wished", "unknown" or "ended".
-- Atomic because a wish without its place among the placements would never be looked at.
local held = redis.call('HMGET', KEYS[1], 'tenant_id', 'is_ended')
if not held[1] then return 'unknown' end
if held[2] == '1' then return 'ended' end
redis.call('HSET', KEYS[1], 'wish', ARGV[2])
redis.call('HDEL', KEYS[1], 'wish_note')
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[5])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, ARGV[6])
if redis.call('LLEN', KEYS[3]) == 0 then redis.call('LPUSH', KEYS[3], 1) end
return 'wished'
