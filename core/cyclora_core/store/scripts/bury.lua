-- Declare a worker dead: its unfinished samples go back to the head of their queues.
-- KEYS: 1 leader  2 worker  3 workers (set)  4 worker_lease  5 worker_inbox  6 worker_samples
--       7 wake (list)  8 worker_cancelled (set)  9 worker_models (hash)
--       then for each sample: future, sample_queue, sample_tenants
-- ARGV: 1 leader token  2 worker_id  then for each sample: tenant_id, entry
-- Returns: "buried", "not_leader" or "alive".
-- Atomic because a worker that renews its lease half-way must either keep all or lose all.
-- Its models need nothing: their unsettled operations are still in the log, and the next
-- dispatch gives them a new epoch.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'not_leader' end
-- Asked again because the answer was lost: its samples are in their queues already.
if redis.call('SISMEMBER', KEYS[3], ARGV[2]) == 0 then return 'buried' end
if redis.call('EXISTS', KEYS[4]) == 1 then return 'alive' end
local key, arg = 9, 2
while key + 3 <= #KEYS do
  if redis.call('HGET', KEYS[key + 1], 'state') == 'pending' then
    redis.call('HDEL', KEYS[key + 1], 'owner')
    redis.call('LPUSH', KEYS[key + 2], ARGV[arg + 2])
    redis.call('SADD', KEYS[key + 3], ARGV[arg + 1])
  end
  key, arg = key + 3, arg + 2
end
redis.call('DEL', KEYS[2], KEYS[5], KEYS[6], KEYS[8], KEYS[9])
redis.call('SREM', KEYS[3], ARGV[2])
if redis.call('LLEN', KEYS[7]) == 0 then redis.call('LPUSH', KEYS[7], 1) end
return 'buried'
