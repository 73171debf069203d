-- What a change of a checkpoint leaves in the books; stands in front of the scripts that make one.
local MAX_STORED_FIELDS = 10000

-- Hours that can no longer be asked for become one, or the hash would grow for ever. A day is left
-- to those whose clock is behind.
local function sum_up(stored, field, kept_hours)
  if redis.call('HLEN', stored) <= MAX_STORED_FIELDS then return end
  local first_hour = tonumber(string.match(field, '^%d+')) - kept_hours - 24
  local rows = redis.call('HGETALL', stored)
  local num_bytes = 0
  for i = 1, #rows, 2 do
    local hour, what = string.match(rows[i], '^(%d+):(.+)$')
    if tonumber(hour) < first_hour then
      if what == 'bytes' then num_bytes = num_bytes + tonumber(rows[i + 1]) end
      redis.call('HDEL', stored, rows[i])
    end
  end
  redis.call('HSET', stored, '0:bytes', string.format('%.0f', num_bytes))
end

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
    -- Rounded first: of a little less than nothing the format makes -0, which is no integer.
    byte_seconds = string.format('%.0f', math.floor(byte_seconds + 0.5))
    redis.call('HINCRBY', KEYS[key + 2], ARGV[arg + 7], byte_seconds)
    sum_up(KEYS[key + 2], ARGV[arg + 6], tonumber(ARGV[arg + 5]) / 3600000)
  end
end

-- What a record counts for, or nothing: unnamed weights are not what a tenant has stored.
local function listed_bytes(record)
  if not record then return 0 end
  local fields = cjson.decode(record)
  return fields.is_listed and fields.num_bytes or 0
end

