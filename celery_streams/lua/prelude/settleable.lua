-- Raises what Redis says when it refuses to settle entries of the stream; changes nothing.
-- Asked before their successors are stored: what was stored and could not be settled would be stored again at each try.
local function settleable(key, group)
    redis.call('XDEL', key, '0-0')
    redis.call('XACK', key, group, '0-0')
end
