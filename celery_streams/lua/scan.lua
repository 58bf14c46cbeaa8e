-- Read a stretch of a stream, without taking anything, no more than a step may carry.
--
-- KEYS     stream
-- ARGV     start and end as XRANGE takes them, greatest number of entries, and of bytes
-- Returns  entries as XRANGE gives them
-- Needs    size
-- The entry that goes beyond the bytes is there still, so that one that is larger than all that can be moved too.
local stream, start, stop, most, bytes = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local found = {}
while #found < most and bytes > 0 do
    local entry = redis.call('XRANGE', stream, start, stop, 'COUNT', 1)[1]
    if not entry then break end
    found[#found + 1] = entry
    bytes = bytes - size(entry[2])
    start = '(' .. entry[1]
end
return found
