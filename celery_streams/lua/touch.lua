-- Say that consumers are alive although they have nothing to do, by making them anew.
--
-- KEYS     task streams
-- ARGV     group, consumers
-- Returns  number of consumers made anew
-- Needs    open_full, pending
-- Before Redis 7.2 a read that finds nothing does not count as a sign of life. A consumer that holds an entry is left
-- alone; a read that blocks goes on, for it knows its consumer by name.
local group = ARGV[1]
local count = 0
for _, key in ipairs(KEYS) do
    if pending(key, group) then
        open_full(key) -- Redis 6.2 refuses XGROUP when it is full
        for i = 2, #ARGV do
            local consumer = ARGV[i]
            if #redis.call('XPENDING', key, group, '-', '+', 1, consumer) == 0 then
                redis.call('XGROUP', 'DELCONSUMER', key, group, consumer)
                count = count + redis.call('XGROUP', 'CREATECONSUMER', key, group, consumer)
            end
        end
    end
end
return count
