-- Returns the next number of a queue's lanes and turns.
local function numbered(at)
    local number = tonumber(redis.call('HGET', at.lanes, '') or 0) + 1
    redis.call('HSET', at.lanes, '', number)
    return number
end
