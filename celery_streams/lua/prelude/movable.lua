-- Raises what Redis says when it refuses any of what moves held messages and places; changes nothing.
-- Asked before the first step: a message that was released and could not be taken off its lane would be released again,
-- and a place that was half given back would be nobody's.
local function movable(at)
    if at.movable then return end
    for _, key in ipairs({at.held, at.lanes, at.places}) do redis.call('HDEL', key, '\0') end
    for _, key in ipairs({at.ready, at.ring, at.running}) do redis.call('ZREM', key, '\0') end
    redis.call('ZADD', at.rates, 'XX', 0, '\0')
    redis.call('ZREMRANGEBYSCORE', at.rates, '(0', '(0')
    local number = redis.call('HGET', at.lanes, '')
    if number then redis.call('HSET', at.lanes, '', number) end
    at.movable = true
end
