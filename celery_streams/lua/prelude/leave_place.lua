-- Gives back the places of an entry; returns what was taken for it, or nothing: also where nobody understands that.
-- One that may not be deleted is tried first: what counts for it must not be less than the places are.
local function leave_place(at, entry)
    local said = redis.call('HGET', at.places, entry)
    if not said then return nil end
    redis.call('HDEL', at.places, '\0')
    local fine, place = pcall(cjson.decode, said)
    fine = fine and type(place) == 'table' and type(place[1]) == 'table' and type(place[3]) == 'string'
    for _, limit in ipairs(fine and place[1] or {}) do
        redis.call('ZREM', at.running, tostring(limit) .. '\0' .. entry)
    end
    redis.call('HDEL', at.places, entry)
    return fine and type(place[4]) == 'string' and place or nil
end
