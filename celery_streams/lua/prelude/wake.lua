-- Wakes the promoters when the member is due before all others.
-- They look now and then all the same, so nothing may fail for it: the message is stored already.
local function wake(delayed, woken, member, due)
    if redis.pcall('ZRANGE', delayed, 0, 0)[1] == member then
        redis.pcall('XADD', woken, 'MAXLEN', 1, '*', 'due', string.format('%.0f', due))
    end
end
