-- Hand entries over to another consumer, as they are: nobody has started them.
--
-- KEYS     task streams and fronts
-- ARGV     group, consumer that has them, consumer that shall have them, then pairs: index of the stream (from 1), id
-- Returns  number of entries that were handed over
-- Needs    owned
-- An entry that another consumer holds, or that is not pending, is left alone. No delivery is counted.
local group, from, to = ARGV[1], ARGV[2], ARGV[3]
local count = 0
for i = 4, #ARGV, 2 do
    local key, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
    if owned(key, group, from, id) then
        redis.call('XCLAIM', key, group, to, 0, id, 'JUSTID')
        count = count + 1
    end
end
return count
