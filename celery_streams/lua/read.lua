-- Read new entries of the highest priority that has any, without blocking.
--
-- KEYS     task streams, in the order in which they shall be served
-- ARGV     group, consumer, count (entries in all), width (streams of the same priority, which stand side by side)
-- Returns  a list of {index of the stream in KEYS (from 1), entries as XREADGROUP gives them}
-- Raises   NOGROUP when a stream or its group is missing
-- Nothing is settled here; what is returned is pending for the consumer.
local left, width = tonumber(ARGV[3]), tonumber(ARGV[4])
local found = {}
for index, key in ipairs(KEYS) do
    -- Fetched along, a lower priority would wait here behind a higher one, and others would overtake it.
    if #found > 0 and (index - 1) % width == 0 then break end
    local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', key, '>')
    if reply then
        local entries = reply[1][2]
        found[#found + 1] = {index, entries}
        left = left - #entries
        if left <= 0 then break end
    end
end
return found
