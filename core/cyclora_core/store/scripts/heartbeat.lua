-- Note a sign of life of a session.
-- KEYS: 1 session  2 live_sessions (zset: session -> last sign of life, ms)
-- ARGV: 1 session_id  2 now_ms
-- Returns: nothing.
-- A script because a full store must take it: it lets sessions without a sign of life end.
redis.call('HSET', KEYS[1], 'last_heartbeat_at_ms', ARGV[2])
-- Not again among the living, if it ended meanwhile.
redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1])
