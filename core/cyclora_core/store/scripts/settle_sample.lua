-- Store the outcome of one sample.
-- KEYS: 1 future  2 body  3 worker_samples (hash)  4 completions (zset)  5 usage (hash)
--       6 pending_samples (set)  7 metered (hash of this hour)  8 trace (list)  9 partial (string)
--       10 session  11 quota_use (hash)
-- ARGV: 1 worker_id  2 state  3 result  4 error_message  5 error_category  6 future_ttl_ms
--       7 settled channel  8 request_id  9 prefilled tokens  10 sampled tokens
--       11 base_model  12 session_id  13 metered_ttl_ms
--       14 trace entry, or ""  15 max trace entries  16 trace_ttl_ms
--       17 cached tokens of the prompt  18 day  19 month, both as quota_use names them
-- Returns: "settled", "already" or "fenced".
-- Atomic because the owner check must hold at the moment the result is stored: a worker that was
-- declared dead has lost its samples to another.
local held = redis.call('HMGET', KEYS[1], 'owner', 'state')
if held[2] and held[2] ~= 'pending' then
  redis.call('HDEL', KEYS[3], ARGV[8])
  return 'already'
end
if held[1] ~= ARGV[1] then
  return 'fenced'
end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
local num_used = ARGV[2] == 'done' and tonumber(ARGV[9]) + tonumber(ARGV[10]) or 0
dequeue(KEYS[11], KEYS[1], num_used)
spend(KEYS[11], num_used, ARGV[18], ARGV[19])
if ARGV[2] == 'done' then
  redis.call('HSET', KEYS[1], 'result', ARGV[3])
  redis.call('HINCRBY', KEYS[5], 'prefilled_tokens', ARGV[9])
  redis.call('HINCRBY', KEYS[5], 'sampled_tokens', ARGV[10])
  local charge = charge_of_sample(KEYS[1], KEYS[10], ARGV[11], ARGV[12])
  counted(KEYS[7], 'prefill', charge, tonumber(ARGV[9]))
  counted(KEYS[7], 'sampled', charge, tonumber(ARGV[10]))
  if ARGV[17] ~= '0' then
    redis.call('HINCRBY', KEYS[5], 'cached_tokens', ARGV[17])
    counted(KEYS[7], 'cached_prefill', charge, tonumber(ARGV[17]))
  end
  redis.call('PEXPIRE', KEYS[7], ARGV[13])
else
  redis.call('HSET', KEYS[1], 'error_message', ARGV[4], 'error_category', ARGV[5])
end
redis.call('HDEL', KEYS[1], 'entry')
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('DEL', KEYS[2], KEYS[9])
redis.call('HDEL', KEYS[3], ARGV[8])
redis.call('SREM', KEYS[6], ARGV[8])
local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')
redis.call('ZADD', KEYS[4], (tonumber(last[2]) or 0) + 1, ARGV[8])
-- A client that samples for weeks asks for what is new, never for what is this old.
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -10001)
redis.call('PEXPIRE', KEYS[4], ARGV[6])
if ARGV[14] ~= '' then
  local submitted = redis.call('HGET', KEYS[1], 'submitted_at_ms') or ''
  redis.call('RPUSH', KEYS[8], submitted .. ' ' .. ARGV[14])
  redis.call('LTRIM', KEYS[8], -tonumber(ARGV[15]), -1)
  redis.call('PEXPIRE', KEYS[8], ARGV[16])
end
redis.call('PUBLISH', ARGV[7], ARGV[8])
return 'settled'
