-- Record a copied checkpoint together with the training run that it belongs to.
-- KEYS: 1 model  2 models_of_tenant (zset)  3 models_of_session (zset)  4 checkpoint
--       5 expiring (zset: path -> ms)  6 doomed_files (zset: files -> ms)
--       7 checkpoints_of_tenant (zset)  8 checkpoints_of_model (zset)
--       9.. as account.lua says
-- ARGV: 1 model_id  2 model fields (JSON object)  3 now_ms  4 path  5 record
--       6 expires_at_ms, or ""  7 files  8.. as account.lua says
-- Returns: "recorded" or "exists", or the quota that it would exceed: {"over", name, limit, used}.
-- Atomic because the run is how a retry knows that the copy was made: with a run but no checkpoint
-- it would never be made, with a checkpoint but no run it would be made again once it is deleted.
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
local over = over_stored(KEYS[16], KEYS[15], ARGV[5], listed_bytes(ARGV[5]))
if over then return over end
for name, value in pairs(cjson.decode(ARGV[2])) do
  redis.call('HSET', KEYS[1], name, value)
end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('SET', KEYS[4], ARGV[5])
account(9, 8, nil, ARGV[5])
if ARGV[6] ~= '' then redis.call('ZADD', KEYS[5], ARGV[6], ARGV[4]) end
redis.call('ZREM', KEYS[6], ARGV[7])
redis.call('ZADD', KEYS[7], ARGV[3], ARGV[4])
redis.call('ZADD', KEYS[8], ARGV[3], ARGV[4])
return 'recorded'
