-- Note what a worker has of its models in memory.
-- KEYS: 1 worker  2 worker_models (hash)
-- ARGV: for each model: model_id, what is held (JSON), "" if only storage has it
-- Returns: "noted" or "buried".
-- Atomic because of a buried worker nothing may be left, and of a model that moved on neither.
if redis.call('EXISTS', KEYS[1]) == 0 then return 'buried' end
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
return 'noted'
