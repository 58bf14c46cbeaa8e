-- Read new entries, highest priority first, without blocking.
--
-- KEYS     task streams, in the order in which they shall be served
-- ARGV     group, consumer, count (entries in all)
-- Returns  a list of {index of the stream in KEYS (from 1), entries as XREADGROUP gives them}
-- Raises   NOGROUP when a stream or its group is missing
-- Nothing is settled here; what is returned is pending for the consumer.
local left = tonumber(ARGV[3])
local found = {}
for index, key in ipairs(KEYS) do
    local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', key, '>')
    if reply then
        local entries = reply[1][2]
        found[#found + 1] = {index, entries}
        left = left - #entries
        if left <= 0 then break end
    end
end
return found
