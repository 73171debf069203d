-- End a session whose client is gone, unless there was a sign of life or work is left.
-- KEYS: 1 session  2 live_sessions (zset: session -> last sign of life, ms)
--       3 ending_sessions (zset: session -> since, ms)  4 models_of_session (zset)
--       5 pending_samples (set)  6 custom_losses_of_session (hash)
--       7 custom_losses_of_tenant (hash)  then for each model: model, held (hash)
--       then for each pending sample: future
-- ARGV: 1 session_id  2 reason  3 detail  4 now_ms  5 last sign of life as it was watched
--       6 number of models  then the request_id of each pending sample
-- Returns: "ended", or "alive", "busy" or "already".
-- Atomic because a request that arrives while we look must keep its session: ended half-way, its
-- model would be unloaded behind it.
if redis.call('HEXISTS', KEYS[1], 'finished_reason') == 1 then return 'already' end
local seen = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not seen or tonumber(seen) ~= tonumber(ARGV[5]) then return 'alive' end
local num_models = tonumber(ARGV[6])
if redis.call('ZCARD', KEYS[4]) ~= num_models then return 'alive' end
for i = 1, num_models do
  local model, held = KEYS[6 + i * 2], KEYS[7 + i * 2]
  local state = redis.call('HMGET', model, 'logged_seq_id', 'applied_seq_id', 'is_ended')
  if state[3] ~= '1' then
    if state[1] ~= state[2] or redis.call('HLEN', held) > 0 then return 'busy' end
  end
end
for i = 1, #ARGV - 6 do
  if redis.call('HGET', KEYS[7 + num_models * 2 + i], 'state') ~= 'pending' then
    redis.call('SREM', KEYS[5], ARGV[6 + i])
  end
end
if redis.call('EXISTS', KEYS[5]) == 1 then return 'busy' end
redis.call('HSET', KEYS[1], 'finished_reason', ARGV[2], 'finished_detail', ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
redis.call('DEL', KEYS[6])
redis.call('HDEL', KEYS[7], ARGV[1])
return 'ended'
