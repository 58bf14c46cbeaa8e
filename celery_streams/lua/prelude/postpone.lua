-- Stores a packed message until it is due; a member that exists already is replaced.
-- The set is tried first, without a change: a message without a member would lie there for ever.
local function postpone(delayed, messages, member, due, packed)
    redis.call('ZADD', delayed, 'XX', 0, '\0')
    redis.call('HSET', messages, member, packed)
    redis.call('ZADD', delayed, string.format('%.0f', due), member)
end
