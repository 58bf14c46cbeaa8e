-- Returns the next number of a queue's lanes and turns.
local function numbered(at)
    at.number = (at.number or tonumber(redis.call('HGET', at.lanes, '') or 0)) + 1
    redis.call('HSET', at.lanes, '', at.number)
    return at.number
end
