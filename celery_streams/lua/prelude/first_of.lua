-- Needs    came, comes_before, outline
-- Returns the field of what goes first of a lane, the message (packed; nothing where somebody deleted it), and its turn
-- among those that have one: see make_room.
local function first_of(at, lane)
    local field, turn = string.format('%.0f:%.0f', lane.number, lane.first), nil
    local packed = lane.first <= lane.last and redis.call('HGET', at.held, field)
    if lane.back then
        local turns = string.format('b%.0f', lane.number)
        turn = redis.call('ZRANGEBYLEX', at.ring, '[' .. turns .. '\0', '(' .. turns .. '\1', 'LIMIT', 0, 1)[1]
        if not turn then lane.back = nil end
    end
    if not turn or (lane.first <= lane.last and not packed) then return field, packed end
    local ms, seq, back = string.match(turn, '^b%d+%z%a(%d+)%a(%d+)%z(.*)$')
    if packed then
        local _, history = outline(packed)
        local one = ms and {tonumber(ms), tonumber(seq)}
        if not comes_before(one, came(history or '')) then return field, packed end
    end
    return back or '', redis.call('HGET', at.held, back or ''), turn
end
