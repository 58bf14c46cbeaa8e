-- Wakes the promoters when the member is due before all others.
local function wake(delayed, woken, member, due)
    if redis.call('ZRANGE', delayed, 0, 0)[1] == member then
        redis.call('XADD', woken, 'MAXLEN', 1, '*', 'due', string.format('%.0f', due))
    end
end
