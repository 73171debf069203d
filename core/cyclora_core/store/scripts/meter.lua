-- Whom things are charged to, and how much; stands in front of the scripts that count.
local DEFAULT_PROJECT = 'default'

-- The project that a session is in now; of one without a record, such as that of requests that
-- need none, the fallback.
local function project_of(session, fallback)
  local held = redis.call('HMGET', session, 'project_id', 'record')
  if held[1] then return held[1] end
  if held[2] then
    local own = cjson.decode(held[2]).project_id
    return (own and own ~= cjson.null) and own or DEFAULT_PROJECT
  end
  return (fallback and fallback ~= '') and fallback or DEFAULT_PROJECT
end

local function counted(metered, meter, charge, amount)
  local field = cjson.encode({meter, unpack(charge)})
  redis.call('HINCRBY', metered, field, string.format('%.0f', amount))
end
