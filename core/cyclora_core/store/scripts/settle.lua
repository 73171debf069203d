-- Store the outcome of one operation of a model and advance the model past it.
-- KEYS: 1 model  2 log (stream)  3 future  4 body  5 ready_models (set)  6 wake (list)
--       7 failed (set of seq_ids that replay leaves out)  8 usage (hash)
--       9 metered (hash of this hour)  10 trace (list)  11 session  12 quota_use (hash)
-- ARGV: 1 worker_id  2 epoch  3 seq_id  4 state  5 result  6 error_message  7 error_category
--       8 future_ttl_ms  9 keep_body (1 or 0)  10 settled channel  11 request_id  12 model_id
--       13 usage field  14 usage tokens
--       15 mark: "snapshot" when storage holds the state after this operation, "end" when the
--          model ends with it, else ""
--       16 base_model, or "" when its tokens are not billed  17 metered_ttl_ms
--       18 trace entry, or ""  19 max trace entries  20 trace_ttl_ms  21 session_id
--       22 day  23 month, both as quota_use names them
-- Returns: "settled", "already", "fenced" or "out_of_order". Whoever has run what was cancelled
-- is fenced: it holds a state that the log does not lead to.
-- Atomic because the result, the applied seq_id and the metered usage must agree whatever dies;
-- the epoch check keeps a worker that was declared dead from settling anything.
local held = redis.call('HMGET', KEYS[1], 'worker_id', 'epoch', 'applied_seq_id', 'logged_seq_id')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then
  return 'fenced'
end
local was = redis.call('HMGET', KEYS[3], 'state', 'is_cancelled')
if was[1] ~= 'pending' then
  return was[2] and 'fenced' or 'already'
end
local applied, logged = tonumber(held[3]), tonumber(held[4])
local seq = tonumber(ARGV[3])
if applied + 1 ~= seq then
  return 'out_of_order'
end
redis.call('HSET', KEYS[3], 'state', ARGV[4])
local num_used = 0
if ARGV[4] == 'done' and ARGV[16] ~= '' then num_used = tonumber(ARGV[14]) end
dequeue(KEYS[12], KEYS[3], num_used)
spend(KEYS[12], num_used, ARGV[22], ARGV[23])
if ARGV[4] == 'done' then
  redis.call('HSET', KEYS[3], 'result', ARGV[5])
  if tonumber(ARGV[14]) > 0 then
    redis.call('HINCRBY', KEYS[8], ARGV[13], ARGV[14])
    if ARGV[16] ~= '' then
      local key_id = redis.call('HGET', KEYS[3], 'key_id') or ''
      local charge = {ARGV[16], ARGV[21], project_of(KEYS[11]), ARGV[12], key_id}
      counted(KEYS[9], 'training', charge, tonumber(ARGV[14]))
      redis.call('PEXPIRE', KEYS[9], ARGV[17])
    end
  end
  -- In the same step: what is replayed from now on must not depend on what the operation read.
  if ARGV[15] == 'snapshot' then
    redis.call('HSET', KEYS[1], 'snapshot_seq_id', seq, 'snapshot_epoch', ARGV[2])
  elseif ARGV[15] == 'end' then
    redis.call('HSET', KEYS[1], 'is_ended', 1)
    if redis.call('HDEL', KEYS[1], 'is_counted') == 1 then
      redis.call('HINCRBY', KEYS[12], 'adapters', -1)
    end
  end
else
  redis.call('HSET', KEYS[3], 'error_message', ARGV[6], 'error_category', ARGV[7])
  if ARGV[9] == '0' then redis.call('SADD', KEYS[7], seq) end
end
redis.call('PEXPIRE', KEYS[3], ARGV[8])
if ARGV[9] == '0' then redis.call('DEL', KEYS[4]) end
applied = seq
while applied < logged do
  local id = (applied + 1) .. '-1'
  local row = redis.call('XRANGE', KEYS[2], id, id)
  if not cjson.decode(row[1][2][2]).is_refused then break end
  applied = applied + 1
end
redis.call('HSET', KEYS[1], 'applied_seq_id', applied)
-- Steps before a spread pass settle while its first part is already noted: leave that alone.
if redis.call('HGET', KEYS[1], 'partial_seq_id') == ARGV[3] then
  redis.call('HSET', KEYS[1], 'partial_seq_id', -1)
end
if applied >= logged then
  redis.call('SREM', KEYS[5], ARGV[12])
end
if ARGV[18] ~= '' then
  local submitted = redis.call('HGET', KEYS[3], 'submitted_at_ms') or ''
  redis.call('RPUSH', KEYS[10], submitted .. ' ' .. ARGV[18])
  redis.call('LTRIM', KEYS[10], -tonumber(ARGV[19]), -1)
  redis.call('PEXPIRE', KEYS[10], ARGV[20])
end
redis.call('PUBLISH', ARGV[10], ARGV[11])
return 'settled'
