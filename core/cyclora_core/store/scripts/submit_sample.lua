-- Record one sample: its future, its body, its place in the tenant's queue.
-- KEYS: 1 future  2 body  3 sample_queue (list)  4 sample_tenants (set)  5 wake (list)
--       6 completions (zset)  7 pending_samples (set)
--       8 live_sessions (zset: session -> last sign of life, ms)  9 quota_use (hash)
--       10 tenants (hash)
-- ARGV: 1 digest  2 entry (JSON)  3 body  4 tenant_id  5 future fields (JSON object)
--       6 future_ttl_ms  7 settled channel  8 request_id  9 session_id  10 now_ms
--       11 tokens, of the prompt and the most that may be drawn  12 sequences
--       13 day  14 month, both as quota_use names them
-- Returns: "accepted", "duplicate", "conflict" or "expired", or the quota that it would exceed:
-- {"over", name, limit, used}.
-- Atomic because a future that is in no queue would never end, and because of two that fill a quota
-- only one may come in.
local known = redis.call('HGET', KEYS[1], 'digest')
if known then
  return known == ARGV[1] and 'duplicate' or 'conflict'
end
-- It ran, and its future is no longer kept: a late retry must not run it again.
if redis.call('ZSCORE', KEYS[6], ARGV[8]) then return 'expired' end
local future = cjson.decode(ARGV[5])
local tokens, samples = tonumber(ARGV[11]), tonumber(ARGV[12])
if future.state == 'pending' then
  local quotas = quotas_of(KEYS[10], ARGV[4])
  local over = over_budget(quotas, KEYS[9], tokens, ARGV[13], ARGV[14])
  if over then return over end
  local found = redis.call('HMGET', KEYS[9], 'samples', 'tokens')
  local queued = tonumber(found[1] or 0)
  -- One is let in whatever its size: it would come again for ever.
  if queued > 0 then
    over = exceeded(quotas, 'max_concurrent_samples', queued, samples)
      or exceeded(quotas, 'max_queued_tokens', tonumber(found[2] or 0), tokens)
    if over then return over end
  end
end
for name, value in pairs(future) do
  redis.call('HSET', KEYS[1], name, value)
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1])
redis.call('ZADD', KEYS[8], 'XX', ARGV[10], ARGV[9])
if future.state == 'pending' then
  -- By which a cancellation finds it in the queue.
  redis.call('HSET', KEYS[1], 'entry', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[3])
  enqueue(KEYS[9], KEYS[1], tokens, samples)
  redis.call('RPUSH', KEYS[3], ARGV[2])
  redis.call('SADD', KEYS[4], ARGV[4])
  redis.call('SADD', KEYS[7], ARGV[8])
  if redis.call('LLEN', KEYS[5]) == 0 then redis.call('LPUSH', KEYS[5], 1) end
else
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  local last = redis.call('ZRANGE', KEYS[6], -1, -1, 'WITHSCORES')
  redis.call('ZADD', KEYS[6], (tonumber(last[2]) or 0) + 1, ARGV[8])
  -- A client that samples for weeks asks for what is new, never for what is this old.
  redis.call('ZREMRANGEBYRANK', KEYS[6], 0, -10001)
  redis.call('PEXPIRE', KEYS[6], ARGV[6])
  redis.call('PUBLISH', ARGV[7], ARGV[8])
end
return 'accepted'
