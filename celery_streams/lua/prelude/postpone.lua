-- Stores a packed message until it is due; a member that exists already is replaced.
local function postpone(delayed, messages, member, due, packed)
    redis.call('HSET', messages, member, packed)
    redis.call('ZADD', delayed, string.format('%.0f', due), member)
end
