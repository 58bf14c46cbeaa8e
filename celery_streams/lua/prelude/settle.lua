-- Deletes an entry and acknowledges it. In this order: what is acknowledged and still there would be nobody's for ever.
local function settle(key, group, id)
    redis.call('XDEL', key, id)
    redis.call('XACK', key, group, id)
end
