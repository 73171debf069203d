-- Read which models a worker holds, and forget those that it does no more.
-- KEYS: 1 worker_models (hash)  then the models
-- ARGV: 1 worker_id  then the model_ids
-- Returns: for each that it holds: model_id, tenant_id, epoch.
-- Atomic because a model that comes back in between would be forgotten.
local out = {}
for i = 2, #KEYS do
  local held = redis.call('HMGET', KEYS[i], 'worker_id', 'is_ended', 'tenant_id', 'epoch')
  if held[1] == ARGV[1] and held[2] ~= '1' then
    table.insert(out, {ARGV[i], held[3], held[4]})
  else
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return out
