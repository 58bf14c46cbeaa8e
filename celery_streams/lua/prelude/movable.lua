-- Raises what Redis says when it refuses any of what moves held messages and places; changes nothing that matters.
-- Asked before the first step: a message that was released and could not be taken off its lane would be released again,
-- and a place that was half given back would be nobody's. Each command is tried once, and each key that is not read
-- before anything is stored: `held` and `running` are. With `now`, tokens that mean nothing any more go by it. It makes
-- a full Redis accept what follows, as `open_full` does.
local function movable(at, now)
    if at.movable then return end
    redis.call('HDEL', at.places, '\0')
    redis.call('ZREM', at.ready, '\0')
    redis.call('ZADD', at.ring, 'XX', 0, '\0')
    redis.call('ZREMRANGEBYSCORE', at.rates, now and '-inf' or '(0', now and now - 1000 or '(0')
    at.tidied = now ~= nil
    local number = redis.call('HGET', at.lanes, '')
    if number then redis.call('HSET', at.lanes, '', number) end
    at.number = tonumber(number)
    at.movable = true
end
