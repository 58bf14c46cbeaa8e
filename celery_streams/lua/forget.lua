-- Delete consumers from the group, but never one that still holds an entry: XGROUP DELCONSUMER would strand it.
--
-- KEYS     task streams, then their fronts
-- ARGV     group, consumer ('' = every consumer that nobody heard of for so long), idle time in ms, number of task
--          streams
-- Returns  number of consumers deleted
-- Needs    described, open_full, pending
-- A stream without the group has no consumers. A front that is empty goes with all its consumers: it is made again when
-- something is put back.
local group, consumer, idle, streams = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local count = 0
for index, key in ipairs(KEYS) do
    if index > streams and redis.call('EXISTS', key) == 1 and redis.call('XLEN', key) == 0 then
        redis.call('UNLINK', key)
    elseif pending(key, group) then
        open_full(key) -- Redis 6.2 refuses XGROUP when it is full
        local names = {}
        if consumer ~= '' then
            names[1] = consumer
        else
            for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
                local known = described(flat)
                if known.pending == 0 and known.idle > idle then names[#names + 1] = known.name end
            end
        end
        for _, name in ipairs(names) do
            if #redis.call('XPENDING', key, group, '-', '+', 1, name) == 0 then
                redis.call('XGROUP', 'DELCONSUMER', key, group, name)
                count = count + 1
            end
        end
    end
end
return count
