-- Record one numbered operation of a model: its future, its body, its place in the command log.
-- KEYS: 1 future  2 body  3 model  4 log (stream)  5 held (hash)  6 ready_models (set)
--       7 wake (list)  8 models_of_tenant (zset)  9 models_of_session (zset)
--       10 gaps (zset: model -> since, ms)  11 session
--       12 live_sessions (zset: session -> last sign of life, ms)
--       13 quota_use (hash)  14 tenants (hash)
-- ARGV: 1 digest  2 seq_id  3 entry (JSON of the log)  4 body  5 now_ms  6 model_id
--       7 new_model (JSON object of fields, or "")  8 future fields (JSON object)
--       9 future_ttl_ms  10 settled channel  11 request_id  12 max seq_ids ahead of the log
--       13 session_id  14 tenant_id  15 tokens  16 lora_rank of a new model, or 0
--       17 day  18 month, both as quota_use names them
-- Returns: "accepted", "duplicate", "conflict", "expired", "too_far" or "ended", or the quota that
-- it would exceed: {"over", name, limit, used}.
-- Atomic because a future without its log entry would never end, and an entry recorded twice
-- would be applied twice; and because of two that fill a quota only one may come in.
local MAX_HELD_BEYOND_QUOTAS = 256

local known = redis.call('HGET', KEYS[1], 'digest')
if known then
  return known == ARGV[1] and 'duplicate' or 'conflict'
end
local seq, tokens = tonumber(ARGV[2]), tonumber(ARGV[15])
local future = cjson.decode(ARGV[8])
local quotas = quotas_of(KEYS[14], ARGV[14])
if ARGV[7] ~= '' and redis.call('EXISTS', KEYS[3]) == 0 then
  -- What cleans up behind the session has looked for its models, or is about to.
  if redis.call('HEXISTS', KEYS[11], 'finished_reason') == 1 then return 'ended' end
  local adapters = tonumber(redis.call('HGET', KEYS[13], 'adapters') or 0)
  local over = exceeded(quotas, 'max_rank', 0, tonumber(ARGV[16]))
    or exceeded(quotas, 'max_adapters', adapters, 1)
  if over then return over end
  redis.call('HINCRBY', KEYS[13], 'adapters', 1)
  redis.call('HSET', KEYS[3], 'is_counted', 1)
  for name, value in pairs(cjson.decode(ARGV[7])) do
    redis.call('HSET', KEYS[3], name, value)
  end
  redis.call('ZADD', KEYS[8], ARGV[5], ARGV[6])
  redis.call('ZADD', KEYS[9], ARGV[5], ARGV[6])
end
local logged = tonumber(redis.call('HGET', KEYS[3], 'logged_seq_id'))
if seq <= logged then
  return 'expired'
end
if seq > logged + tonumber(ARGV[12]) then
  return 'too_far'
end
if future.state == 'pending' and tokens > 0 then
  local over = over_budget(quotas, KEYS[13], tokens, ARGV[17], ARGV[18])
  if over then
    -- It comes again for an hour, longer than anybody waits for what is missing.
    redis.call('HSET', KEYS[3], 'paused_at_ms', ARGV[5])
    return over
  end
  local applied = tonumber(redis.call('HGET', KEYS[3], 'applied_seq_id'))
  local num_held = redis.call('HLEN', KEYS[5])
  -- Refused, what others of its model wait for would never come to run: a client gives up on a
  -- 429 after five minutes. With nothing of the model left to run, that is any of its requests.
  local is_due = seq == logged + 1 and num_held > 0
    or logged == applied and num_held < MAX_HELD_BEYOND_QUOTAS
  if not is_due then
    local queued = tonumber(redis.call('HGET', KEYS[13], 'tokens') or 0)
    over = exceeded(quotas, 'max_queued_tokens', queued, tokens)
    if over then return over end
  end
end
for name, value in pairs(future) do
  redis.call('HSET', KEYS[1], name, value)
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1])
redis.call('HSET', KEYS[3], 'last_request_at_ms', ARGV[5])
redis.call('ZADD', KEYS[12], 'XX', ARGV[5], ARGV[13])
if future.state == 'pending' then
  redis.call('SET', KEYS[2], ARGV[4])
  enqueue(KEYS[13], KEYS[1], tokens, 0)
else
  redis.call('PEXPIRE', KEYS[1], ARGV[9])
  redis.call('PUBLISH', ARGV[10], ARGV[11])
end
-- Chunks of one call arrive in any order: hold what is early, log the gap-free run.
redis.call('HSET', KEYS[5], seq, ARGV[3])
while true do
  local entry = redis.call('HGET', KEYS[5], logged + 1)
  if not entry then break end
  logged = logged + 1
  -- A stream id may not be 0-0, so the sequence number is the first half and 1 the second.
  redis.call('XADD', KEYS[4], logged .. '-1', 'entry', entry)
  redis.call('HDEL', KEYS[5], logged)
end
if redis.call('HLEN', KEYS[5]) > 0 then
  redis.call('ZADD', KEYS[10], 'NX', ARGV[5], ARGV[6])
else
  redis.call('ZREM', KEYS[10], ARGV[6])
end
local applied = tonumber(redis.call('HGET', KEYS[3], 'applied_seq_id'))
-- An operation that was refused at submission has nothing to run: step over it.
while applied < logged do
  local id = (applied + 1) .. '-1'
  local row = redis.call('XRANGE', KEYS[4], id, id)
  if not cjson.decode(row[1][2][2]).is_refused then break end
  applied = applied + 1
end
redis.call('HSET', KEYS[3], 'logged_seq_id', logged, 'applied_seq_id', applied)
if logged > applied then
  redis.call('SADD', KEYS[6], ARGV[6])
  if redis.call('LLEN', KEYS[7]) == 0 then redis.call('LPUSH', KEYS[7], 1) end
end
return 'accepted'
