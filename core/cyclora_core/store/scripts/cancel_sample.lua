-- End a sample that nobody waits for, wherever it stands.
-- KEYS: 1 future  2 body  3 sample_queue (list)  4 sample_tenants (set)  5 completions (zset)
--       6 worker_samples (hash)  7 worker_cancelled (set)  8 worker_inbox (list), all three of the
--       expected worker  9 pending_samples (set)  10 partial (string)
--       11 quota_use (hash)  12 usage (hash)  13 metered (hash of this hour)  14 session
-- ARGV: 1 expected worker_id, "" when it waits  2 tenant_id  3 state  4 error_message
--       5 error_category  6 future_ttl_ms  7 settled channel  8 request_id
--       9 bytes of one token in partial  10 base_model  11 session_id  12 metered_ttl_ms
--       13 day  14 month, both as quota_use names them
-- Returns: "cancelled", "final", "unknown", or "moved": it is with another worker than expected.
-- Atomic because a sample that left its queue but did not end would be lost, and one that ended but
-- is still its worker's would be queued again when that dies.
local held = redis.call('HMGET', KEYS[1], 'state', 'owner', 'entry')
if not held[1] then return 'unknown' end
if held[1] ~= 'pending' then return 'final' end
if (held[2] or '') ~= ARGV[1] then return 'moved' end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'error_message', ARGV[4], 'error_category', ARGV[5])
-- One that had started computed something, how much nobody says: what it was charged is spent.
dequeue(KEYS[11], KEYS[1], nil)
-- Of a stream it is known: else whoever hangs up before the last token would have all for nothing.
-- How much of the prompt was found cached is not; all of it counts as prefilled.
local num_shown = math.floor(redis.call('STRLEN', KEYS[10]) / tonumber(ARGV[9]))
if num_shown > 0 then
  local num_prompt = tonumber(redis.call('HGET', KEYS[1], 'prompt_tokens') or 0)
  spend(KEYS[11], num_prompt + num_shown, ARGV[13], ARGV[14])
  redis.call('HINCRBY', KEYS[12], 'prefilled_tokens', whole(num_prompt))
  redis.call('HINCRBY', KEYS[12], 'sampled_tokens', whole(num_shown))
  local charge = charge_of_sample(KEYS[1], KEYS[14], ARGV[10], ARGV[11])
  counted(KEYS[13], 'prefill', charge, num_prompt)
  counted(KEYS[13], 'sampled', charge, num_shown)
  redis.call('PEXPIRE', KEYS[13], ARGV[12])
end
redis.call('HDEL', KEYS[1], 'entry')
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('DEL', KEYS[2], KEYS[10])
redis.call('SREM', KEYS[9], ARGV[8])
if ARGV[1] ~= '' then
  redis.call('HDEL', KEYS[6], ARGV[8])
  redis.call('SADD', KEYS[7], ARGV[8])
  redis.call('LPUSH', KEYS[8], 0)
  redis.call('LTRIM', KEYS[8], 0, 0)
elseif held[3] then
  redis.call('LREM', KEYS[3], 1, held[3])
  if redis.call('LLEN', KEYS[3]) == 0 then redis.call('SREM', KEYS[4], ARGV[2]) end
end
local last = redis.call('ZRANGE', KEYS[5], -1, -1, 'WITHSCORES')
redis.call('ZADD', KEYS[5], (tonumber(last[2]) or 0) + 1, ARGV[8])
-- A client that samples for weeks asks for what is new, never for what is this old.
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -10001)
redis.call('PEXPIRE', KEYS[5], ARGV[6])
redis.call('PUBLISH', ARGV[7], ARGV[8])
return 'cancelled'
