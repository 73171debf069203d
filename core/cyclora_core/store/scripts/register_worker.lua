-- Make a worker known and start its lease; an earlier process of the same name is dead.
-- KEYS: 1 worker  2 workers (set)  3 worker_names (hash)  4 worker_lease  5 base_models (hash)
--       6 wake (list)
-- ARGV: 1 worker_id  2 worker_name  3 lease_ms  4 base_model  5 base model info (JSON)
--       6 now_ms  7 stats (JSON)
-- Returns: the worker_id of the earlier process, or "".
-- Atomic because two processes of one name must not both be taken for alive.
local earlier = redis.call('HGET', KEYS[3], ARGV[2]) or ''
redis.call('HSET', KEYS[3], ARGV[2], ARGV[1])
-- Asked again because the answer was lost, it may have been given a cycle meanwhile.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'base_model', ARGV[4], 'name', ARGV[2], 'registered_at_ms', ARGV[6],
    'cycle_id', '', 'cycle', '', 'stats', ARGV[7])
end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SET', KEYS[4], 1, 'PX', ARGV[3])
redis.call('HSET', KEYS[5], ARGV[4], ARGV[5])
if redis.call('LLEN', KEYS[6]) == 0 then redis.call('LPUSH', KEYS[6], 1) end
return earlier == ARGV[1] and '' or earlier
