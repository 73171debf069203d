-- End operations of a model that nobody has begun, and leave their places in the order used up.
-- KEYS: 1 model  2 log (stream)  3 held (hash)  4 ready_models (set)  5 worker (expected)
--       6 audit (zset)  7 quota_use (hash)  then for each operation: future, body
-- ARGV: 1 model_id  2 expected worker_id, "" when nobody holds the model  3 error_message
--       4 error_category  5 future_ttl_ms  6 body_ttl_ms  7 settled channel  8 audit entry
--       9 its at_ms  10 ms from which on others are kept  11 rank up to which they go
--       then for each operation, in order of seq_id: seq_id, request_id
-- Returns: how many were ended, or "moved": another worker holds the model.
-- Atomic because what is behind an operation that was ended must not run before all that was to be
-- ended is, and because one that a worker was given meanwhile is to run to its end.
local held = redis.call('HMGET', KEYS[1], 'worker_id', 'applied_seq_id', 'logged_seq_id',
  'partial_seq_id')
if not held[2] then return 0 end
if (held[1] or '') ~= ARGV[2] then return 'moved' end
local applied, logged = tonumber(held[2]), tonumber(held[3])
-- A pass of which a part has run is begun, and so is all that the worker was given.
local begun = math.max(applied, tonumber(held[4] or '-1'))
local cycle = redis.call('HMGET', KEYS[5], 'cycle_id', 'cycle')
if (cycle[1] or '') ~= '' and ARGV[2] ~= '' then
  for _, planned in ipairs(cjson.decode(cycle[2]).models) do
    if planned.model_id == ARGV[1] then
      for _, operation in ipairs(planned.operations) do
        begun = math.max(begun, operation.seq_id)
      end
    end
  end
end
local ended, num_ended = {}, 0
for i = 8, #KEYS, 2 do
  local at = 12 + i - 8
  local seq, request_id = tonumber(ARGV[at]), ARGV[at + 1]
  if seq > begun and redis.call('HGET', KEYS[i], 'state') == 'pending' then
    redis.call('HSET', KEYS[i], 'state', 'failed', 'is_cancelled', 1, 'error_message', ARGV[3],
      'error_category', ARGV[4])
    dequeue(KEYS[7], KEYS[i], 0)
    redis.call('PEXPIRE', KEYS[i], ARGV[5])
    -- A worker that has read the log before this may still ask for it; it can settle nothing.
    redis.call('PEXPIRE', KEYS[i + 1], ARGV[6])
    redis.call('PUBLISH', ARGV[7], request_id)
    ended[seq] = cjson.encode({request_id = request_id, is_refused = true})
    num_ended = num_ended + 1
    -- Of those in front of which one is missing, the places wait for it as before.
    if redis.call('HEXISTS', KEYS[3], seq) == 1 then redis.call('HSET', KEYS[3], seq, ended[seq]) end
  end
end
if num_ended == 0 then return 0 end
-- Entries of a stream cannot be changed in place.
local rows = redis.call('XRANGE', KEYS[2], '-', '+')
redis.call('DEL', KEYS[2])
for _, row in ipairs(rows) do
  local seq = tonumber(string.match(row[1], '^%d+'))
  redis.call('XADD', KEYS[2], row[1], 'entry', ended[seq] or row[2][2])
end
while applied < logged do
  local id = (applied + 1) .. '-1'
  local row = redis.call('XRANGE', KEYS[2], id, id)
  if not cjson.decode(row[1][2][2]).is_refused then break end
  applied = applied + 1
end
redis.call('HSET', KEYS[1], 'applied_seq_id', applied)
if applied >= logged then redis.call('SREM', KEYS[4], ARGV[1]) end
redis.call('ZADD', KEYS[6], ARGV[9], ARGV[8])
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', '(' .. ARGV[10])
redis.call('ZREMRANGEBYRANK', KEYS[6], 0, ARGV[11])
return num_ended
