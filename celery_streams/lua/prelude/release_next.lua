-- Needs    line_up, release_lane
-- Releases what waits for places of a task, lane after lane in turn, as long as there is room; returns how much.
local function release_next(at, queue, task, now)
    local limit, count = 'T' .. task, 0
    for _ = 1, 100 do
        local turn = redis.call('ZRANGEBYLEX', at.ring, '[' .. limit .. '\0', '(' .. limit .. '\1', 'LIMIT', 0, 1)[1]
        if not turn then break end
        local lane = string.sub(turn, #limit + 19)
        local barrier, till = release_lane(at, queue, lane, now)
        if barrier == limit then break end -- it keeps its turn
        redis.call('ZREM', at.ring, turn)
        if not barrier then count = count + 1 end
        if barrier and barrier ~= 'E' then line_up(at, lane, barrier, till) end
    end
    return count
end
