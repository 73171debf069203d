-- Keep a result that was handed out for a shorter time from now on.
-- KEYS: 1 future
-- ARGV: 1 kept_ms
-- Returns: 1 when its time was shortened, else 0.
-- Atomic because a time that was shortened meanwhile, by an acknowledgement, must not grow again.
if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[1]) then
  return redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 0
