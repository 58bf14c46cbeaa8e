-- Say that consumers are alive although they have nothing to do, by making them anew.
--
-- KEYS     task streams
-- ARGV     group, consumers
-- Returns  number of consumers made anew
-- Before Redis 7.2 a read that finds nothing does not count as a sign of life. A consumer that holds an entry is left
-- alone; a read that blocks goes on, for it knows its consumer by name.
local count = 0
for _, key in ipairs(KEYS) do
    if not redis.pcall('XPENDING', key, ARGV[1])['err'] then
        -- A full Redis 6.2 refuses XGROUP, unless the script has written before; this writes nothing.
        redis.call('XDEL', key, '0-0')
        for i = 2, #ARGV do
            if #redis.call('XPENDING', key, ARGV[1], '-', '+', 1, ARGV[i]) == 0 then
                redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], ARGV[i])
                count = count + redis.call('XGROUP', 'CREATECONSUMER', key, ARGV[1], ARGV[i])
            end
        end
    end
end
return count
