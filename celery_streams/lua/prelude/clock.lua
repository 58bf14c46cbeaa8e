-- Returns Redis' time in milliseconds since the epoch.
local function clock()
    local now = redis.call('TIME')
    return tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end
