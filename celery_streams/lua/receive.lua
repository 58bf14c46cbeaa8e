-- Take entries that were handed over to this worker.
--
-- KEYS     pairs: the front of a task stream, the task stream; in the order in which they shall be served
-- ARGV     group, consumer that they were handed to, consumer that shall have them, greatest number of entries
-- Returns  a list of {index of the stream in KEYS (from 1), entries as XRANGE gives them}
-- Needs    pending
-- What is returned is pending for the new consumer. An entry that somebody else has deleted is acknowledged.
local group, from, to, left = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local found = {}
for index, key in ipairs(KEYS) do
    if left <= 0 then break end
    local entries = {}
    for _, held in ipairs(pending(key, group, '-', '+', left, from) or {}) do
        local entry = redis.call('XRANGE', key, held[1], held[1])[1]
        if entry then
            redis.call('XCLAIM', key, group, to, 0, held[1], 'JUSTID')
            entries[#entries + 1] = entry
        else
            -- It must not fail for it: what was taken before would be forgotten.
            redis.pcall('XACK', key, group, held[1])
        end
    end
    left = left - #entries
    if #entries > 0 then found[#found + 1] = {index, entries} end
end
return found
