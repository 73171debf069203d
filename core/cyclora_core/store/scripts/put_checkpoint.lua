-- Record a checkpoint, or change what is recorded of one.
-- KEYS: 1 checkpoint  2 expiring (zset: path -> ms)  3 doomed_files (zset: files -> ms)
--       4 checkpoints_of_tenant (zset)  5 checkpoints_of_model (zset)  6 unlisted_of_model (set)
--       7 published (set)  8.. as account.lua says
-- ARGV: 1 path  2 record  3 record as it was read, or "" to replace whatever is there
--       4 expires_at_ms, or ""  5 created_at_ms  6 is_listed (1 or 0)  7 files
--       8 is_public (1 or 0)  9.. as account.lua says
-- Returns: "put", "changed", "superseded" when a later save of the path was recorded before, or the
-- quota that it would exceed: {"over", name, limit, used}.
-- Atomic because a change worked out from a record that was replaced, renewed or dropped meanwhile
-- would undo that, because a record and the time it expires at must agree, and because a worker that
-- was declared dead in the midst of a save must not undo what its successor has saved since.
local old = redis.call('GET', KEYS[1])
-- It was done, and its answer lost; or there is nothing to change, and to note.
if old == ARGV[2] then return 'put' end
if ARGV[3] ~= '' and old ~= ARGV[3] then return 'changed' end
if ARGV[3] == '' and old then
  -- Saves of one path are of one model, and their revisions its seq_ids.
  local theirs = tonumber(cjson.decode(old).revision)
  local mine = tonumber(cjson.decode(ARGV[2]).revision)
  if theirs and mine and theirs > mine then return 'superseded' end
end
local more = listed_bytes(ARGV[2]) - listed_bytes(old)
if ARGV[3] == '' and more > 0 then
  local over = over_stored(KEYS[15], KEYS[14], ARGV[2], more)
  if over then return over end
end
redis.call('SET', KEYS[1], ARGV[2])
account(8, 9, old, ARGV[2])
if ARGV[4] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
end
redis.call('ZREM', KEYS[3], ARGV[7])
redis.call(ARGV[8] == '1' and 'SADD' or 'SREM', KEYS[7], ARGV[1])
if ARGV[6] == '1' then
  redis.call('ZADD', KEYS[4], ARGV[5], ARGV[1])
  redis.call('ZADD', KEYS[5], ARGV[5], ARGV[1])
else
  redis.call('SADD', KEYS[6], ARGV[1])
end
return 'put'
