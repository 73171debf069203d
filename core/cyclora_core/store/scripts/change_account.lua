-- Replace a record of a tenant or of an API key, and note the change.
-- KEYS: 1 records (hash: id -> record)  2 audit (zset)
-- ARGV: 1 id  2 record as it was read  3 record as it shall be  4 audit entry  5 its at_ms
--       6 ms from which on others are kept  7 rank up to which they go
-- Returns: 1 if it is as it shall be, 0 if somebody else changed it meanwhile.
-- Atomic because two administrators may change different parts of one record at the same time.
-- Run again after a lost answer, it finds its own change and writes the same entry.
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found ~= ARGV[2] and found ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[6])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, ARGV[7])
return 1
