-- Forget a training run that has ended and holds nothing any more.
-- KEYS: 1 model  2 log  3 held  4 failed  5 handed_over  6 checkpoints_of_model
--       7 unlisted_of_model  8 models_of_tenant (zset)  9 models_of_session (zset)
--       10 live_sessions (zset)
-- ARGV: 1 model_id  2 session_id
-- Returns: 1 when it was dropped, 0 when it is still in use.
-- Atomic because a checkpoint that is recorded meanwhile would belong to nothing, and because in a
-- session that lives the same number could be taken for a new model.
if redis.call('HGET', KEYS[1], 'is_ended') ~= '1' then return 0 end
if redis.call('ZCARD', KEYS[6]) > 0 or redis.call('SCARD', KEYS[7]) > 0 then return 0 end
if redis.call('HLEN', KEYS[5]) > 0 then return 0 end
local seq = redis.call('HMGET', KEYS[1], 'logged_seq_id', 'applied_seq_id')
if seq[1] ~= seq[2] then return 0 end
if redis.call('ZSCORE', KEYS[10], ARGV[2]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('ZREM', KEYS[8], ARGV[1])
redis.call('ZREM', KEYS[9], ARGV[1])
return 1
