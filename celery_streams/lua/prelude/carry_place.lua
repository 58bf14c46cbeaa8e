-- Needs    holds_places, movable
-- Has the places of an entry pass on to its copy, which stands in the same line: it was not started, and keeps what it
-- was given, its token too.
-- Nothing may fail for it: the copy is stored already. Workers look for the places of what is gone, too.
local function carry_place(at, entry, copy)
    if not holds_places(at) then return end
    pcall(function()
        local said = redis.call('HGET', at.places, entry)
        if not said then return end
        movable(at)
        local fine, place = pcall(cjson.decode, said)
        fine = fine and type(place) == 'table' and type(place[1]) == 'table'
        redis.call('HSET', at.places, copy, said)
        for _, limit in ipairs(fine and place[1] or {}) do
            redis.call('ZADD', at.running, 0, tostring(limit) .. '\0' .. copy)
            redis.call('ZREM', at.running, tostring(limit) .. '\0' .. entry)
        end
        redis.call('HDEL', at.places, entry)
    end)
end
