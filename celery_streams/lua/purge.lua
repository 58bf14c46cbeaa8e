-- Discard what waits on a task stream and was not delivered yet, some entries at a time.
--
-- KEYS     task stream
-- ARGV     group, greatest number of entries to discard in this step, and of their bytes
-- Returns  {number of entries discarded, 1 when there may be more}
-- Needs    described, size, unlock
-- Pending entries are left alone: somebody is running them.
local stream, group, most, bytes = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', stream) == 0 then return {0, 0} end
local from = '-'
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local known = described(flat)
    if known.name == group then from = '(' .. known['last-delivered-id'] end
end
local count = 0
while count < most and bytes > 0 do
    local entry = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
    if not entry then return {count, 0} end
    bytes = bytes - size(entry[2])
    count = count + redis.call('XDEL', stream, entry[1])
    unlock(entry[2][1] == 'headers' and entry[2][2], stream, entry[1])
end
return {count, 1}
