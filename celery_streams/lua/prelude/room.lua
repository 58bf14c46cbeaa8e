-- Returns how many messages a queue may still take: `bound` without its delayed ones, what its streams, KEYS from
-- `from` on, hold, and what is held back, the last of KEYS.
local function room(bound, delayed, from)
    bound = bound - redis.call('ZCARD', delayed)
    for i = from, #KEYS - 1 do bound = bound - redis.call('XLEN', KEYS[i]) end
    return bound - redis.call('HLEN', KEYS[#KEYS])
end
