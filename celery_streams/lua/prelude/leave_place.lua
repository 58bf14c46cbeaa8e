-- Gives back the places of an entry; returns what was taken for it, or nothing: also where nobody understands that.
-- `said` is what they say, where the caller has read it. What counts for an entry must not be less than its places are,
-- nor more: where Redis refuses one of both, neither is given back.
local function leave_place(at, entry, said)
    said = said or redis.call('HGET', at.places, entry)
    if not said then return nil end
    local fine, place = pcall(cjson.decode, said)
    fine = fine and type(place) == 'table' and type(place[1]) == 'table' and type(place[3]) == 'string'
    local members = {}
    for i = 1, fine and math.min(#place[1], 100) or 0 do members[i] = tostring(place[1][i]) .. '\0' .. entry end
    redis.call('HDEL', at.places, entry)
    at.counts = {}
    if #members > 0 then
        local reply = redis.pcall('ZREM', at.running, unpack(members))
        if type(reply) == 'table' and reply['err'] then
            redis.call('HSET', at.places, entry, said)
            redis.call('ZREM', at.running, unpack(members)) -- once more, to raise: it says where
        end
    end
    return fine and type(place[4]) == 'string' and place or nil
end
