-- What a change of a checkpoint leaves in the books; stands in front of the scripts that make one.
-- account(key, arg, num_bytes) writes the change, of which num_bytes are more, or fewer, stored now.
-- KEYS from key on: audit (zset)  metered (hash of this hour)  stored (hash)
-- ARGV from arg on: audit entry, or ""  its at_ms  ms from which on others are kept
--       rank up to which they go  metered field of one checkpoint made, or ""  metered_ttl_ms
--       field of this hour's bytes  field of this hour's bytes times seconds  ms left of the hour
local function account(key, arg, num_bytes)
  if ARGV[arg] ~= '' then
    redis.call('ZADD', KEYS[key], ARGV[arg + 1], ARGV[arg])
    redis.call('ZREMRANGEBYSCORE', KEYS[key], '-inf', '(' .. ARGV[arg + 2])
    redis.call('ZREMRANGEBYRANK', KEYS[key], 0, ARGV[arg + 3])
  end
  if ARGV[arg + 4] ~= '' then
    redis.call('HINCRBY', KEYS[key + 1], ARGV[arg + 4], 1)
    redis.call('PEXPIRE', KEYS[key + 1], ARGV[arg + 5])
  end
  if num_bytes ~= 0 then
    local byte_seconds = num_bytes * tonumber(ARGV[arg + 8]) / 1000
    redis.call('HINCRBY', KEYS[key + 2], ARGV[arg + 6], string.format('%.0f', num_bytes))
    redis.call('HINCRBY', KEYS[key + 2], ARGV[arg + 7], string.format('%.0f', byte_seconds))
  end
end

-- What a record counts for, or nothing: unnamed weights are not what a tenant has stored.
local function listed_bytes(record)
  if not record then return 0 end
  local fields = cjson.decode(record)
  return fields.is_listed and fields.num_bytes or 0
end

