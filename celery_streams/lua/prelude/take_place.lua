-- Needs    take_token
-- Takes what an entry needs to start: a token, and a place for each limit until the entry is gone.
local function take_place(at, entry, lane, known, now)
    local taken, members = {'L' .. lane}, {}
    if known.limit then taken[#taken + 1] = 'T' .. known.task end
    if known.key_limit then taken[#taken + 1] = 'K' .. known.key end
    redis.call('HSET', at.places, entry, cjson.encode({taken, string.format('%.0f', now), known.task, known.key or ''}))
    take_token(at, known, now)
    for _, limit in ipairs(taken) do
        members[#members + 1] = 0
        members[#members + 1] = limit .. '\0' .. entry
        at.counts[limit] = at.counts[limit] and at.counts[limit] + 1
    end
    redis.call('ZADD', at.running, unpack(members))
end
