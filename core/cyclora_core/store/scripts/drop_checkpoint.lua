-- Forget a checkpoint, and remember that its files are to be deleted.
-- KEYS: 1 checkpoint  2 expiring (zset: path -> ms)  3 doomed_files (zset: files -> ms)
--       4 checkpoints_of_tenant (zset)  5 checkpoints_of_model (zset)  6 unlisted_of_model (set)
--       7 published (set)  8.. as account.lua says
-- ARGV: 1 path  2 record as it was read  3 files  4 now_ms  5.. as account.lua says
-- Returns: "dropped" or "changed".
-- Atomic because one that was renewed or replaced after it was read must stay, and because files
-- whose record is gone would be found by nobody if we died here.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then return 'changed' end
redis.call('DEL', KEYS[1])
account(8, 5, ARGV[2], nil)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[3])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('SREM', KEYS[6], ARGV[1])
redis.call('SREM', KEYS[7], ARGV[1])
return 'dropped'
