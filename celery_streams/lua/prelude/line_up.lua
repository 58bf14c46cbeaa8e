-- Needs    numbered
-- Puts a lane where it is found again: by time, or behind those that wait for the same limit.
local function line_up(at, lane, barrier, till)
    if barrier ~= 'R' then
        redis.call('ZREM', at.ready, lane)
        redis.call('ZADD', at.ring, 0, barrier .. '\0' .. string.format('%016.0f', numbered(at)) .. '\0' .. lane)
        return
    end
    redis.call('ZADD', at.ready, string.format('%.3f', till), lane)
    if redis.call('ZRANGE', at.ready, 0, 0)[1] == lane then
        -- No delayed message is due for it. They look now and then all the same, so nothing may fail for it.
        redis.pcall('XADD', at.wake, 'MAXLEN', 1, '*', 'ready', '9000000000000')
    end
end
