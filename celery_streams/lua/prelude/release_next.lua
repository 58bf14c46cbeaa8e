-- Needs    next_turn, release_turn
-- Releases what waits for places of a task, lane after lane in turn, as long as there is room; returns how much.
local function release_next(at, queue, task, now)
    local limit, count = 'T' .. task, 0
    for _ = 1, 100 do
        local turn, lane = next_turn(at, limit)
        if not turn then break end
        local more, released = release_turn(at, queue, turn, lane, now, limit)
        if released then count = count + 1 end
        if not more then break end
    end
    return count
end
