-- Delete consumers from the group, but never one that still holds an entry: XGROUP DELCONSUMER would strand it.
--
-- KEYS     task streams
-- ARGV     group, consumer ('' = every consumer that nobody heard of for so long), idle time in ms
-- Returns  number of consumers deleted
-- A stream without the group has no consumers.
local count = 0
for _, key in ipairs(KEYS) do
    if not redis.pcall('XPENDING', key, ARGV[1])['err'] then
        -- A full Redis 6.2 refuses XGROUP, unless the script has written before; this writes nothing.
        redis.call('XDEL', key, '0-0')
        local names = {}
        if ARGV[2] ~= '' then
            names[1] = ARGV[2]
        else
            for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', key, ARGV[1])) do
                local known = {}
                for i = 1, #info, 2 do known[info[i]] = info[i + 1] end
                if known['pending'] == 0 and known['idle'] > tonumber(ARGV[3]) then names[#names + 1] = known['name'] end
            end
        end
        for _, name in ipairs(names) do
            if #redis.call('XPENDING', key, ARGV[1], '-', '+', 1, name) == 0 then
                redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], name)
                count = count + 1
            end
        end
    end
end
return count
