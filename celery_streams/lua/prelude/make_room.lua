-- Needs    came, comes_before, follow, numbered, outline
-- Makes room in a lane for a message, told by `came`, where it belongs by that; returns the field that it shall have.
-- A new one comes last, or nearly so: what it goes before moves by one. One that was put back, or belongs further
-- inside, or among large ones, has a turn: those that have stand among `ring`, in their order, and `first_of` merges
-- them with the others. So it costs the same in a line of any length.
-- A turn: b LANE NUMBER, NUL, both numbers of its time, each behind a letter that tells how many digits it has, NUL,
-- its field.
local function make_room(at, lane, one, new)
    local most, bytes, count = new and 50 or 0, 200000, lane.last - lane.first + 1
    local function field(position) return string.format('%.0f:%.0f', lane.number, position) end
    -- Returns whether the message goes before what stands there, and that.
    local function look(position)
        local packed = redis.call('HGET', at.held, field(position))
        if not packed then return one ~= nil, {} end
        bytes = bytes - #packed
        local headers, history = outline(packed)
        return comes_before(one, came(history or '')), {position, packed, headers}
    end
    local passed, far = {}, count > most and look(lane.last - most)
    while not far and #passed < count do
        local goes_before, other = look(lane.last - #passed)
        if not goes_before then break end
        passed[#passed + 1] = other
        far = bytes <= 0
    end
    if far then
        local function sortable(number)
            local digits = string.format('%.0f', number)
            return string.char(64 + #digits) .. digits
        end
        local named = string.format('%.0f:b%.0f', lane.number, numbered(at))
        local turn = string.format('b%.0f', lane.number) .. '\0' .. sortable(one[1]) .. sortable(one[2])
        redis.call('ZADD', at.ring, 0, turn .. '\0' .. named)
        lane.back = (lane.back or 0) + 1
        return named
    end
    for _, other in ipairs(passed) do
        local position, packed, headers = other[1], other[2], other[3]
        if packed then
            redis.call('HSET', at.held, field(position + 1), packed)
            follow(headers, at.held, field(position), at.held, field(position + 1))
            redis.call('HDEL', at.held, field(position))
        end
    end
    lane.last = lane.last + 1
    return field(lane.last - #passed)
end
