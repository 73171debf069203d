-- What a change of a checkpoint leaves in the books; stands, after meter.lua, in front of the
-- scripts that make one.

-- What a record counts for, or nothing: unnamed weights are not what a tenant has stored.
local function listed_bytes(record)
  if not record then return 0 end
  local fields = cjson.decode(record)
  return fields.is_listed and fields.num_bytes or 0
end

-- account(key, arg, old, new) writes the change of a record; either may be missing.
-- KEYS from key on: audit (zset)  metered (hash of this hour)  stored (hash: charge -> bytes now)
--       stored_as (hash: path -> charge)  session  future of who saved it
--       quota_use (hash)  tenants (hash), which over_stored reads
-- ARGV from arg on: audit entry, or ""  its at_ms  ms from which on others are kept
--       rank up to which they go  is_made (1 or 0: one checkpoint more)  metered_ttl_ms
--       ms left of the hour  path  base_model  session_id  model_id
--       key_id and project_id of who copied or uploaded it, or "" each
-- What leaves is taken from whom it was charged to when it came, wherever its session is now.
local function account(key, arg, old, new)
  local metered, stored, stored_as = KEYS[key + 1], KEYS[key + 2], KEYS[key + 3]
  if ARGV[arg] ~= '' then
    redis.call('ZADD', KEYS[key], ARGV[arg + 1], ARGV[arg])
    redis.call('ZREMRANGEBYSCORE', KEYS[key], '-inf', '(' .. ARGV[arg + 2])
    redis.call('ZREMRANGEBYRANK', KEYS[key], 0, ARGV[arg + 3])
  end
  local path = ARGV[arg + 7]
  local was = redis.call('HGET', stored_as, path)
  local num_old, num_new = was and listed_bytes(old) or 0, listed_bytes(new)
  local is_made = ARGV[arg + 4] == '1'
  if num_old == 0 and num_new == 0 and not is_made then return end
  local function move(charge, num_bytes)
    local field = cjson.encode(charge)
    local left = redis.call('HINCRBY', stored, field, string.format('%.0f', num_bytes))
    if left == 0 then redis.call('HDEL', stored, field) end
    redis.call('HINCRBY', KEYS[key + 6], 'stored_bytes', string.format('%.0f', num_bytes))
    -- Rounded first: of a little less than nothing the format makes -0, which is no integer.
    local byte_seconds = math.floor(num_bytes * tonumber(ARGV[arg + 6]) / 1000 + 0.5)
    counted(metered, 'stored_bytes', charge, num_bytes)
    counted(metered, 'stored_byte_seconds', charge, byte_seconds)
  end
  if num_old ~= 0 then move(cjson.decode(was), -num_old) end
  if num_new == 0 and not is_made then
    redis.call('HDEL', stored_as, path)
  else
    local charge
    if is_made or not was then
      local project = ARGV[arg + 12]
      if project == '' then project = project_of(KEYS[key + 4]) end
      local key_id = ARGV[arg + 11]
      if key_id == '' then key_id = redis.call('HGET', KEYS[key + 5], 'key_id') or '' end
      charge = {ARGV[arg + 8], ARGV[arg + 9], project, ARGV[arg + 10], key_id}
      redis.call('HSET', stored_as, path, cjson.encode(charge))
    else
      charge = cjson.decode(was)
    end
    if num_new ~= 0 then move(charge, num_new) end
    if is_made then counted(metered, 'checkpoint', charge, 1) end
  end
  redis.call('PEXPIRE', metered, ARGV[arg + 5])
end

