-- End the wait for a seq_id that never came: what waits behind the gap fails, the model goes on.
-- KEYS: 1 leader  2 model  3 log (stream)  4 held (hash)  5 gaps (zset: model -> since, ms)
--       6 quota_use (hash)  then for each held operation, in order of seq_id: future, body
-- ARGV: 1 leader token  2 model_id  3 error_message  4 error_category  5 future_ttl_ms
--       6 settled channel  7 expected logged_seq_id  8 now_ms  9 patience_ms  then for
--       each held operation: seq_id, request_id
-- Returns: "closed", "not_leader" or "stale".
-- Atomic because an operation that arrives meanwhile must find either the gap or its end: run
-- after later ones were failed, it would be applied out of order. The expected logged_seq_id says
-- which gap was waited for: one that was filled must not take the next one's patience with it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'not_leader' end
local num_held = (#KEYS - 6) / 2
if num_held == 0 or redis.call('HLEN', KEYS[4]) ~= num_held then return 'stale' end
local state = redis.call('HMGET', KEYS[2], 'logged_seq_id', 'applied_seq_id', 'paused_at_ms')
if state[1] ~= ARGV[7] then return 'stale' end
-- What is missing may have been refused for now, by whichever clock, and comes again.
if state[3] and math.abs(tonumber(ARGV[8]) - tonumber(state[3])) < tonumber(ARGV[9]) then
  return 'stale'
end
local logged, applied = tonumber(state[1]), tonumber(state[2])
local was_idle = logged == applied
for i = 1, num_held do
  if redis.call('HEXISTS', KEYS[4], ARGV[8 + i * 2]) == 0 then return 'stale' end
end
for i = 1, num_held do
  local future, body = KEYS[5 + i * 2], KEYS[6 + i * 2]
  local seq, request_id = tonumber(ARGV[8 + i * 2]), ARGV[9 + i * 2]
  if redis.call('HGET', future, 'state') == 'pending' then
    redis.call('HSET', future, 'state', 'failed', 'error_message', ARGV[3],
      'error_category', ARGV[4])
    dequeue(KEYS[6], future, 0)
    redis.call('PEXPIRE', future, ARGV[5])
    redis.call('PUBLISH', ARGV[6], request_id)
  end
  redis.call('DEL', body)
  -- The missing ones get entries too: the log stays free of gaps, and nothing in it runs.
  while logged < seq do
    logged = logged + 1
    redis.call('XADD', KEYS[3], logged .. '-1', 'entry', '{"is_refused":true}')
  end
end
redis.call('DEL', KEYS[4])
redis.call('ZREM', KEYS[5], ARGV[2])
redis.call('HSET', KEYS[2], 'logged_seq_id', logged)
-- With nothing queued before the gap the model is past it; else settling steps over it.
if was_idle then redis.call('HSET', KEYS[2], 'applied_seq_id', logged) end
return 'closed'
