-- Discard what waits on a task stream and was not delivered yet, some entries at a time.
--
-- KEYS     task stream
-- ARGV     group, greatest number of entries to discard in this step
-- Returns  number of entries discarded
-- Pending entries are left alone: somebody is running them.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local from = '-'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local known = {}
    for i = 1, #group, 2 do known[group[i]] = group[i + 1] end
    if known['name'] == ARGV[1] then from = '(' .. known['last-delivered-id'] end
end
local count = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', ARGV[2])) do
    count = count + redis.call('XDEL', KEYS[1], entry[1])
end
return count
