-- Discard what waits on a task stream and was not delivered yet, some entries at a time.
--
-- KEYS     task stream
-- ARGV     group, greatest number of entries to discard in this step
-- Returns  number of entries discarded
-- Needs    described
-- Pending entries are left alone: somebody is running them.
local stream, group, most = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', stream) == 0 then return 0 end
local from = '-'
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local known = described(flat)
    if known.name == group then from = '(' .. known['last-delivered-id'] end
end
local count = 0
for _, entry in ipairs(redis.call('XRANGE', stream, from, '+', 'COUNT', most)) do
    count = count + redis.call('XDEL', stream, entry[1])
end
return count
