-- Note that storage holds a model's state up to a seq_id and drop the log it covers.
-- KEYS: 1 model  2 log (stream)  3 failed (set)  4.. bodies of the covered operations
-- ARGV: 1 worker_id  2 epoch  3 seq_id
-- Returns: "recorded" or "fenced".
-- Atomic because a log trimmed without its snapshot recorded could not be replayed.
local held = redis.call('HMGET', KEYS[1], 'worker_id', 'epoch', 'snapshot_seq_id', 'is_ended')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then
  return 'fenced'
end
-- One that was written in the background may end after a newer one that an operation settled with.
if tonumber(ARGV[3]) < tonumber(held[3]) then return 'recorded' end
redis.call('HSET', KEYS[1], 'snapshot_seq_id', ARGV[3], 'snapshot_epoch', ARGV[2])
redis.call('XTRIM', KEYS[2], 'MINID', (tonumber(ARGV[3]) + 1) .. '-1')
for _, seq in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  if tonumber(seq) <= tonumber(ARGV[3]) then redis.call('SREM', KEYS[3], seq) end
end
-- A model that has ended gets no more entries; trimming leaves an empty stream behind.
if held[4] == '1' and redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[2]) end
for i = 4, #KEYS do redis.call('DEL', KEYS[i]) end
return 'recorded'
