-- Raises what Redis says when it refuses any of what moves held messages and places; changes nothing.
-- Asked before the first step: a message that was released and could not be taken off its lane would be released again,
-- and a place that was half given back would be nobody's. Each key, and each command, is tried once.
local function movable(at)
    if at.movable then return end
    redis.call('HDEL', at.held, '\0')
    redis.call('HDEL', at.places, '\0')
    redis.call('ZREM', at.ready, '\0')
    redis.call('ZREM', at.running, '\0')
    redis.call('ZADD', at.ring, 'XX', 0, '\0')
    redis.call('ZREMRANGEBYSCORE', at.rates, '(0', '(0')
    local number = redis.call('HGET', at.lanes, '')
    if number then redis.call('HSET', at.lanes, '', number) end
    at.movable = true
end
