-- Takes what `first_of` returned off its lane; returns whether the lane is empty then.
-- How many have a turn is counted for people; whether any has, `ring` knows.
local function take_first(at, lane, field, turn)
    redis.call('HDEL', at.held, field)
    if turn then
        redis.call('ZREM', at.ring, turn)
    else
        lane.first = lane.first + 1
    end
    if lane.back then
        local turns = string.format('b%.0f', lane.number)
        local more = redis.call('ZRANGEBYLEX', at.ring, '[' .. turns .. '\0', '(' .. turns .. '\1', 'LIMIT', 0, 1)[1]
        lane.back = more and math.max(lane.back - (turn and 1 or 0), 1) or nil
    end
    return lane.first > lane.last and not lane.back
end
