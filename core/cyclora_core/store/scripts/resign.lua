-- Give up leading, and wake a standby that can take over at once.
-- KEYS: 1 leader  2 vacancy (list)
-- ARGV: 1 token
-- Returns: 1 when the caller led, else 0.
-- Atomic because between looking and deleting another scheduler may have become the leader.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if redis.call('LLEN', KEYS[2]) == 0 then redis.call('LPUSH', KEYS[2], 1) end
return 1
