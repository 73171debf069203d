-- Hand one planned cycle to a free worker: number it, assign its models, take its samples.
-- KEYS: 1 leader  2 worker  3 worker_lease  4 worker_inbox (list)  5 cycle_counters (hash)
--       6 worker_samples (hash)  7 sample_tenants (set)  8 tenants (hash)  9 worker_models (hash)
--       10 placements (set)  then for each model: its hash, the worker_models of who has it;
--       then for each sample: future, sample_queue;  then for each tenant whose passes or samples
--       start: quota_use (hash), their futures
-- ARGV: 1 leader token  2 worker_id  3 base_model  4 cycle (JSON without number)
--       5 nonce of this dispatch  6 number of models  7 number of samples  8 now_ms
--       then for each model: expected worker_id, expected epoch, new epoch, partial_seq_id, or ""
--       of one that stays and runs nothing, partial_stop, model_id, the wish that this fulfils or
--       "";  then for each sample: queue
--       entry, request_id, tenant_id;  then for each tenant: tenant_id, number of futures
-- Returns: the cycle_id, or "not_leader", "busy", "dead" or "stale".
-- Atomic because a cycle that is numbered but not handed over, or a sample that left its queue
-- without an owner, would be lost if the scheduler died in between; and what is charged to a rate
-- is charged once, whoever asks again.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'not_leader' end
-- Asked again because the answer was lost: the worker may have run it meanwhile and be free.
if redis.call('HGET', KEYS[2], 'nonce') == ARGV[5] then
  return tonumber(redis.call('HGET', KEYS[2], 'last_cycle_id'))
end
if redis.call('EXISTS', KEYS[3]) == 0 then return 'dead' end
if (redis.call('HGET', KEYS[2], 'cycle_id') or '') ~= '' then return 'busy' end
local num_models = tonumber(ARGV[6])
for i = 1, num_models do
  local held = redis.call('HMGET', KEYS[9 + 2 * i], 'worker_id', 'epoch')
  local at = 8 + (i - 1) * 7
  if held[1] ~= ARGV[at + 1] or held[2] ~= ARGV[at + 2] then return 'stale' end
end
local cycle_id = redis.call('HINCRBY', KEYS[5], ARGV[3], 1)
for i = 1, num_models do
  local at = 8 + (i - 1) * 7
  local model, model_id = KEYS[9 + 2 * i], ARGV[at + 6]
  redis.call('HSET', model, 'worker_id', ARGV[2], 'epoch', ARGV[at + 3])
  if ARGV[at + 4] ~= '' then
    redis.call('HSET', model, 'partial_seq_id', ARGV[at + 4], 'partial_stop', ARGV[at + 5])
  end
  if ARGV[at + 1] ~= ARGV[2] then redis.call('HDEL', KEYS[10 + 2 * i], model_id) end
  redis.call('HSETNX', KEYS[9], model_id, '')
  if ARGV[at + 7] ~= '' and redis.call('HGET', model, 'wish') == ARGV[at + 7] then
    redis.call('HDEL', model, 'wish', 'wish_note')
    redis.call('SREM', KEYS[10], model_id)
  end
end
local key = 10 + 2 * num_models
local arg = 8 + num_models * 7
for _ = 1, tonumber(ARGV[7]) do
  local entry, request_id = ARGV[arg + 1], ARGV[arg + 2]
  redis.call('LREM', KEYS[key + 2], 1, entry)
  if redis.call('LLEN', KEYS[key + 2]) == 0 then redis.call('SREM', KEYS[7], ARGV[arg + 3]) end
  if redis.call('HGET', KEYS[key + 1], 'state') == 'pending' then
    redis.call('HSET', KEYS[key + 1], 'owner', ARGV[2])
    redis.call('HSET', KEYS[6], request_id, entry)
  end
  key, arg = key + 2, arg + 3
end
while key < #KEYS do
  local tenant_id, num_futures = ARGV[arg + 1], tonumber(ARGV[arg + 2])
  local per_minute = quotas_of(KEYS[8], tenant_id).tokens_per_minute
  if per_minute then
    local futures = {}
    for i = 1, num_futures do futures[i] = KEYS[key + 1 + i] end
    charge(KEYS[key + 1], per_minute, tonumber(ARGV[8]), futures)
  end
  key, arg = key + 1 + num_futures, arg + 2
end
redis.call('HSET', KEYS[2], 'cycle_id', cycle_id, 'cycle', ARGV[4], 'nonce', ARGV[5],
  'last_cycle_id', cycle_id)
redis.call('LPUSH', KEYS[4], cycle_id)
redis.call('LTRIM', KEYS[4], 0, 0)
return cycle_id
