-- Needs    line_up, release_lane
-- Releases the first message of a lane that has its turn among those that wait for places; returns whether more of the
-- task may be released then, and whether that message was. A lane that is barred by something else waits for that.
-- Where Redis refuses it, it is looked at again as what waits for a time is: its place is free, and nobody else would.
local function release_turn(at, queue, turn, lane, now, limit)
    local fine, barrier, more = pcall(release_lane, at, queue, lane, now)
    if not fine then
        pcall(line_up, at, lane, 'R', now)
        pcall(redis.call, 'ZREM', at.ring, turn)
        error(barrier, 0)
    end
    if barrier and barrier == limit then return false, false end -- it keeps its turn
    redis.call('ZREM', at.ring, turn)
    if barrier and barrier ~= 'E' then line_up(at, lane, barrier, more) end
    return barrier ~= nil or more ~= nil, barrier == nil
end
