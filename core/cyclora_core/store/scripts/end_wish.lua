-- Forget where an administrator wanted a model to be, unless that was changed meanwhile.
-- KEYS: 1 model  2 placements (set)
-- ARGV: 1 model_id  2 wish  3 why it was not fulfilled, or ""
-- Returns: "ended" or "changed".
-- Atomic because a newer wish must not be forgotten in the stead of this one.
local wish = redis.call('HGET', KEYS[1], 'wish')
if wish and wish ~= ARGV[2] then return 'changed' end
redis.call('SREM', KEYS[2], ARGV[1])
if wish then
  redis.call('HDEL', KEYS[1], 'wish', 'wish_note')
  if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'wish_note', ARGV[3]) end
end
return 'ended'
