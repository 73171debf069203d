-- Whom things are charged to, and how much; stands in front of the scripts that count.
local DEFAULT_PROJECT = 'default'

-- The project that a session is in now; of one without a record, such as that of requests that
-- need none, the fallback.
local function project_of(session, fallback)
  local project = redis.call('HGET', session, 'project_id')
  if project then return project ~= '' and project or DEFAULT_PROJECT end
  -- Of sessions that an earlier version has recorded, only the record says it.
  local record = redis.call('HGET', session, 'record')
  if record then
    project = cjson.decode(record).project_id
    return (project and project ~= cjson.null) and project or DEFAULT_PROJECT
  end
  return (fallback and fallback ~= '') and fallback or DEFAULT_PROJECT
end

-- Whom a sample is charged to.
local function charge_of_sample(future, session, base_model, session_id)
  local who = redis.call('HMGET', future, 'run_id', 'key_id', 'project_id')
  return {base_model, session_id, project_of(session, who[3]), who[1] or '', who[2] or ''}
end

local function counted(metered, meter, charge, amount)
  local field = cjson.encode({meter, unpack(charge)})
  redis.call('HINCRBY', metered, field, string.format('%.0f', amount))
end
