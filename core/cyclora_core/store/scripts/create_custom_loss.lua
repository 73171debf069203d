-- Store a custom loss under its number, with the future that says so.
-- KEYS: 1 custom_losses_of_session (hash: number -> digest and record)
--       2 custom_losses_of_tenant (hash: session_id -> "count bytes")
--       3 session (hash)  4 future
-- ARGV: 1 number  2 digest  3 record  4 session_id  5 future fields (JSON object)  6 result
--       7 future_ttl_ms  8 settled channel  9 request_id  10 most losses of a session
--       11 most bytes of a session  12 most losses of a tenant  13 most bytes of a tenant
-- Returns: "accepted", "duplicate", "conflict", "finished", "session_full" or "tenant_full".
-- Atomic because the bounds, the end of the session and the number must be looked at together
-- with storing: two uploads at once would both find room, and a late one would outlive its session.
local digest, record = ARGV[2], ARGV[3]
local known = redis.call('HGET', KEYS[1], ARGV[1])
local outcome = 'duplicate'
if known then
  if string.sub(known, 1, #digest) ~= digest then return 'conflict' end
else
  if redis.call('HEXISTS', KEYS[3], 'finished_reason') == 1
      or redis.call('EXISTS', KEYS[3]) == 0 then
    return 'finished'
  end
  local count, bytes = 0, 0
  local own_count, own_bytes = 0, 0
  local rows = redis.call('HGETALL', KEYS[2])
  for i = 1, #rows, 2 do
    local n, b = string.match(rows[i + 1], '(%d+) (%d+)')
    count, bytes = count + tonumber(n), bytes + tonumber(b)
    if rows[i] == ARGV[4] then own_count, own_bytes = tonumber(n), tonumber(b) end
  end
  if own_count >= tonumber(ARGV[10]) or own_bytes + #record > tonumber(ARGV[11]) then
    return 'session_full'
  end
  if count >= tonumber(ARGV[12]) or bytes + #record > tonumber(ARGV[13]) then
    return 'tenant_full'
  end
  redis.call('HSET', KEYS[1], ARGV[1], digest .. record)
  redis.call('HSET', KEYS[2], ARGV[4],
    string.format('%d %d', own_count + 1, own_bytes + #record))
  outcome = 'accepted'
end
-- Also for a late retry, whose future has expired: the loss is still there.
if redis.call('EXISTS', KEYS[4]) == 0 then
  for name, value in pairs(cjson.decode(ARGV[5])) do
    redis.call('HSET', KEYS[4], name, value)
  end
  redis.call('HSET', KEYS[4], 'result', ARGV[6])
  redis.call('PEXPIRE', KEYS[4], ARGV[7])
  redis.call('PUBLISH', ARGV[8], ARGV[9])
end
return outcome
