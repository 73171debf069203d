-- Write down who changed what, of a change that is no script by itself.
-- KEYS: 1 audit (zset)
-- ARGV: 1 audit entry  2 its at_ms  3 ms from which on others are kept  4 rank up to which they go
-- Returns: 1.
-- A script because what makes room, such as deleting a run, must go on however full the store is.
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, ARGV[4])
return 1
