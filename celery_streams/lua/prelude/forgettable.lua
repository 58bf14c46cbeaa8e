-- Raises what Redis says when it refuses to take messages out of the delayed set; changes nothing.
-- Asked before they are stored elsewhere: what was stored and could not be taken out would be stored again at each try.
local function forgettable(delayed, messages)
    redis.call('ZREM', delayed, '\0')
    redis.call('HDEL', messages, '\0')
end
