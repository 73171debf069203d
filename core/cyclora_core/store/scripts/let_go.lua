-- A worker has brought a model's state to storage, and any worker may have it now; or could not.
-- KEYS: 1 model  2 worker_models (hash)  3 placements (set)  4 wake (list)
-- ARGV: 1 worker_id  2 epoch  3 model_id  4 why it stays, or ""
-- Returns: "let_go", "kept" or "fenced".
-- Atomic because the model would be lost to its worker, or be let go of twice, in between.
local held = redis.call('HMGET', KEYS[1], 'worker_id', 'epoch', 'wish')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 'fenced' end
local is_kept = ARGV[4] ~= ''
-- Part of a pass was undone before the state was written, also when it could not be.
redis.call('HSET', KEYS[1], 'partial_seq_id', -1, 'partial_stop', 0)
if is_kept then
  redis.call('HSET', KEYS[1], 'wish_note', ARGV[4])
else
  redis.call('HSET', KEYS[1], 'worker_id', '')
  redis.call('HDEL', KEYS[2], ARGV[3])
end
if held[3] and (is_kept or held[3] == 'unload:') then
  redis.call('HDEL', KEYS[1], 'wish')
  redis.call('SREM', KEYS[3], ARGV[3])
end
if redis.call('LLEN', KEYS[4]) == 0 then redis.call('LPUSH', KEYS[4], 1) end
return is_kept and 'kept' or 'let_go'
