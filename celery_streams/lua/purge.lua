-- Discard what waits on a task stream and was not delivered yet, some entries at a time.
--
-- KEYS     what the queue holds back (see prelude/shelf), then its streams, fronts and marks
-- ARGV     group, number of task streams of a queue, which of them it is (from 0; the fronts come behind), greatest
--          number of entries to discard in this step, and of their bytes
-- Returns  {number of entries discarded, 1 when there may be more}
-- Needs    described, queue_of, quit_place, shelf, size, unlock
-- Pending entries are left alone: somebody is running them.
local group, steps, place = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local at, queue = shelf(1), queue_of(9, steps, group, {})
local stream = KEYS[9 + place]
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
    quit_place(at, queue, place .. ':' .. entry[1])
end
return {count, 1}
