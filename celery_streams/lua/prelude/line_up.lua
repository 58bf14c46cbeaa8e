-- Needs    numbered
-- Puts a lane where it is found again: by time, or behind those of its priority that wait for the same limit.
-- What waits for a rate that it shares stands among `ready`, too, at a time that never comes: the rate, behind a byte
-- that begins no lane, has the time of its next token there.
local function line_up(at, lane, barrier, till)
    local rate = string.match(barrier, '^R(.+)$')
    if barrier ~= 'R' then
        local step = string.match(lane, '\1(%d)$') or '0'
        local turn = step .. string.format('%015.0f', numbered(at))
        redis.call('ZADD', at.ring, 0, barrier .. '\0' .. turn .. '\0' .. lane)
    end
    if rate then
        redis.call('ZADD', at.ready, 9e15, lane)
    elseif barrier ~= 'R' then
        redis.call('ZREM', at.ready, lane)
        return
    end
    local name = rate and '\255' .. rate or lane
    redis.call('ZADD', at.ready, string.format('%.3f', till), name)
    if at.wake and redis.call('ZRANGE', at.ready, 0, 0)[1] == name then
        -- No delayed message is due for it. They look now and then all the same, so nothing may fail for it.
        redis.pcall('XADD', at.wake, 'MAXLEN', 1, '*', 'ready', '9000000000000')
    end
end
