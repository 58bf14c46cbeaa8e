-- Returns the turn of the lane that comes next of those that wait for a limit, and the lane; see shelf.
local function next_turn(at, limit)
    local turn = redis.call('ZRANGEBYLEX', at.ring, '[' .. limit .. '\0', '(' .. limit .. '\1', 'LIMIT', 0, 1)[1]
    return turn, turn and string.sub(turn, #limit + 19)
end
