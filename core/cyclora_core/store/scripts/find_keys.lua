-- Look up API keys together with their tenants.
-- KEYS: 1 api_key_by_hash (hash)  2 api_keys (hash: key id -> record)  3 tenants (hash)
--       4 api_keys_used (hash: key id -> ms)
-- ARGV: 1 SHA-256 of an API key, or ""  2.. key ids
-- Returns: for each that exists three values: record, record of its tenant or "", ms or "".
-- One step instead of three, since every request begins with it.
local ids = {unpack(ARGV, 2)}
if ARGV[1] ~= '' then table.insert(ids, redis.call('HGET', KEYS[1], ARGV[1])) end
local found = {}
for _, id in ipairs(ids) do
  local record = id and redis.call('HGET', KEYS[2], id)
  if record then
    table.insert(found, record)
    table.insert(found, redis.call('HGET', KEYS[3], cjson.decode(record).tenant_id) or '')
    table.insert(found, redis.call('HGET', KEYS[4], id) or '')
  end
end
return found
