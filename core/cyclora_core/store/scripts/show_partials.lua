-- Write down what streamed samples have so far, and tell whoever waits for them.
-- KEYS: for each sample: future, partial (string)
-- ARGV: 1 worker_id  2 partial_ttl_ms  3 settled channel  then for each sample: request_id, place of
--       the first byte, bytes
-- Returns: how many of the samples are still this worker's.
-- Atomic because a worker that was declared dead must not write between what its successor writes.
local shown = {}
for i = 1, #KEYS / 2 do
  local held = redis.call('HMGET', KEYS[2 * i - 1], 'owner', 'state')
  local at = 3 * i
  if held[1] == ARGV[1] and held[2] == 'pending' then
    redis.call('SETRANGE', KEYS[2 * i], ARGV[at + 2], ARGV[at + 3])
    redis.call('PEXPIRE', KEYS[2 * i], ARGV[2])
    shown[#shown + 1] = ARGV[at + 1]
  end
end
if #shown > 0 then redis.call('PUBLISH', ARGV[3], table.concat(shown, ' ')) end
return #shown
