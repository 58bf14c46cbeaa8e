-- Read a stretch of a stream, without taking anything, no more than a step may carry.
--
-- KEYS     stream
-- ARGV     start and end as XRANGE takes them, or the end and start as XREVRANGE does; greatest number of entries, and
--          of bytes; 'back' to read from the newest to the oldest
-- Returns  entries as XRANGE and XREVRANGE give them
-- Needs    size
-- The entry that goes beyond the bytes is there still, so that one that is larger than all that can be moved too.
local stream, start, stop, most, bytes = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local back = ARGV[5] == 'back'
local found = {}
while #found < most and bytes > 0 do
    local page
    if back then
        page = redis.call('XREVRANGE', stream, start, stop, 'COUNT', 1)
    else
        page = redis.call('XRANGE', stream, start, stop, 'COUNT', 1)
    end
    local entry = page[1]
    if not entry then break end
    found[#found + 1] = entry
    bytes = bytes - size(entry[2])
    start = '(' .. entry[1]
end
return found
