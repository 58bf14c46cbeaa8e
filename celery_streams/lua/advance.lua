-- Have delayed messages be due at another time, each that is still due when the caller believes.
--
-- KEYS     delayed, wake
-- ARGV     triples: member, when it is due, as Redis said it, and when it shall be due (ms since the epoch)
-- Returns  number of messages that are due at another time now
-- Needs    clock, open_full
-- What was promoted, cancelled or hurried meanwhile is left alone. So this may be sent twice.
local delayed, woken = KEYS[1], KEYS[2]
local count = 0
open_full(delayed)
for i = 1, #ARGV, 3 do
    if redis.call('ZSCORE', delayed, ARGV[i]) == ARGV[i + 1] then
        redis.call('ZADD', delayed, ARGV[i + 2], ARGV[i])
        count = count + 1
    end
end
-- They look now and then all the same, so nothing may fail for it.
if count > 0 then redis.pcall('XADD', woken, 'MAXLEN', 1, '*', 'due', string.format('%.0f', clock())) end
return count
