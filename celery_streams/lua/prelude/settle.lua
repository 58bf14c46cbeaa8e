-- Acknowledges an entry and deletes it.
local function settle(key, group, id)
    redis.call('XACK', key, group, id)
    redis.call('XDEL', key, id)
end
