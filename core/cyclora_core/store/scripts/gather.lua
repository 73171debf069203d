-- Read what waits of each ready model: where it stands, who holds it, and its next operations.
-- KEYS: for each model: its hash, its log (stream)
-- ARGV: 1 max operations per model
-- Returns: for each model: {tenant_id, worker_id, epoch, partial_seq_id, partial_stop, entries}
-- Atomic per model because an applied seq_id read apart from its log could plan a settled
-- operation again.
local out = {}
for i = 1, #KEYS, 2 do
  local held = redis.call('HMGET', KEYS[i], 'tenant_id', 'worker_id', 'epoch',
    'partial_seq_id', 'partial_stop', 'applied_seq_id')
  local entries = {}
  if held[6] then
    local from = (tonumber(held[6]) + 1) .. '-1'
    for _, row in ipairs(redis.call('XRANGE', KEYS[i + 1], from, '+', 'COUNT', ARGV[1])) do
      table.insert(entries, row[2][2])
    end
  end
  table.insert(out, {held[1] or '', held[2] or '', held[3] or '0', held[4] or '-1',
    held[5] or '0', entries})
end
return out
