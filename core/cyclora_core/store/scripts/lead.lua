-- Become, or remain, the one scheduler that may dispatch.
-- KEYS: 1 leader
-- ARGV: 1 token  2 lease_ms  3 prefix of the tokens that the caller replaces, or ""
-- Returns: 1 when the caller leads, else 0.
-- Atomic because two schedulers that both saw a free lease would both dispatch.
local held = redis.call('GET', KEYS[1])
-- Renewed once a quarter of it is over: every write waits for the disk, and a look needs none.
if held == ARGV[1] and redis.call('PTTL', KEYS[1]) * 4 > tonumber(ARGV[2]) * 3 then return 1 end
if held and held ~= ARGV[1] then
  if ARGV[3] == '' or string.sub(held, 1, #ARGV[3]) ~= ARGV[3] then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
