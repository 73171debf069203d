-- What a tenant has asked for and may ask for; stands in front of the scripts that change either.
--
-- All that counts against a tenant's quotas is in one hash, quota_use:
--   operations, samples, tokens  accepted and not final yet; samples are sequences
--   adapters                     models that have not ended
--   stored_bytes                 of checkpoints under a name
--   2026-11-22, 2026-11          tokens metered on a day and in a month, UTC
--   rate_level, rate_at_ms       tokens that may start now, and when that was so
-- A future that counts says so itself, in queued_tokens and queued_samples, until it is final. The
-- tokens of one that has started under a rate are in charged_tokens.

local function whole(number)
  -- Added to 0 first: of minus nothing the format makes -0, which is no integer.
  return string.format('%.0f', 0 + number)
end

-- The quotas of a tenant, without those that are unbounded.
local function quotas_of(tenants, tenant_id)
  local record = redis.call('HGET', tenants, tenant_id)
  local quotas = record and cjson.decode(record).quotas or {}
  for name, limit in pairs(quotas) do
    if limit == cjson.null then quotas[name] = nil end
  end
  return quotas
end

-- {'over', name, limit, used} when so much more would be beyond a quota, else nil.
local function exceeded(quotas, name, used, more)
  local limit = quotas[name]
  if limit and used + more > limit then
    return {'over', name, whole(limit), whole(used)}
  end
end

-- The same for tokens of new work against the budgets of the day and the month. What is queued
-- counts as used: together with it, no budget can be exceeded.
local function over_budget(quotas, use, tokens, day, month)
  if tokens == 0 or not (quotas.tokens_per_day or quotas.tokens_per_month) then return end
  local found = redis.call('HMGET', use, 'tokens', day, month)
  local queued = tonumber(found[1] or 0)
  return exceeded(quotas, 'tokens_per_day', queued + tonumber(found[2] or 0), tokens)
    or exceeded(quotas, 'tokens_per_month', queued + tonumber(found[3] or 0), tokens)
end

-- The same for bytes of a new checkpoint, of which this is the record.
local function over_stored(tenants, use, record, num_bytes)
  local quotas = quotas_of(tenants, cjson.decode(record).tenant_id)
  local stored = tonumber(redis.call('HGET', use, 'stored_bytes') or 0)
  return exceeded(quotas, 'max_stored_bytes', stored, num_bytes)
end

-- An operation was accepted.
local function enqueue(use, future, tokens, samples)
  redis.call('HSET', future, 'queued_tokens', whole(tokens), 'queued_samples', whole(samples))
  redis.call('HINCRBY', use, 'operations', 1)
  redis.call('HINCRBY', use, 'tokens', whole(tokens))
  redis.call('HINCRBY', use, 'samples', whole(samples))
end

-- An operation is final. What it was charged at its start above the tokens that it used, nil when
-- that is not known, is given back.
local function dequeue(use, future, num_used)
  local held = redis.call('HMGET', future, 'queued_tokens', 'queued_samples', 'charged_tokens')
  if not held[1] then return end
  redis.call('HINCRBY', use, 'operations', -1)
  redis.call('HINCRBY', use, 'tokens', whole(0 - tonumber(held[1])))
  redis.call('HINCRBY', use, 'samples', whole(0 - tonumber(held[2])))
  redis.call('HDEL', future, 'queued_tokens', 'queued_samples', 'charged_tokens')
  local level = num_used and held[3] and redis.call('HGET', use, 'rate_level')
  if level then
    redis.call('HSET', use, 'rate_level',
      string.format('%.6f', tonumber(level) + tonumber(held[3]) - num_used))
  end
end

-- Tokens were metered on a day of a month.
local function spend(use, tokens, day, month)
  if tokens == 0 then return end
  for _, period in ipairs({day, month}) do
    if redis.call('HINCRBY', use, period, whole(tokens)) == tokens then
      -- A new one: earlier ones of its kind are over. Later ones are of a clock that is ahead.
      for _, field in ipairs(redis.call('HKEYS', use)) do
        if #field == #period and string.match(field, '^%d+%-') and field < period then
          redis.call('HDEL', use, field)
        end
      end
    end
  end
end

-- Tokens that may start at a time: those of one minute at most, fewer than none after large work.
local function rate_level(use, per_minute, now_ms)
  local held = redis.call('HMGET', use, 'rate_level', 'rate_at_ms')
  if not held[1] then return per_minute end
  -- A clock that was set back by an hour must not make a tenant wait for that long.
  local passed_ms = math.abs(now_ms - tonumber(held[2]))
  return math.min(per_minute, tonumber(held[1]) + per_minute * passed_ms / 60000)
end

-- Operations start, each for the first time or again: what starts again was charged before.
local function charge(use, per_minute, now_ms, futures)
  local level = rate_level(use, per_minute, now_ms)
  for _, future in ipairs(futures) do
    local tokens = redis.call('HGET', future, 'queued_tokens')
    if tokens and redis.call('HSETNX', future, 'charged_tokens', tokens) == 1 then
      level = level - tonumber(tokens)
    end
  end
  redis.call('HSET', use, 'rate_level', string.format('%.6f', level),
    'rate_at_ms', whole(now_ms))
end

