-- Needs    came, comes_before, follow, outline
-- Returns the position in a lane at which a message goes, told by `came`, and makes room for it: what stands between
-- there and the nearer end moves by one. A `new` one was never put back, and hardly ever goes anywhere but to the end.
-- It looks no further inside than so many messages and bytes, a few milliseconds of Redis: a new one goes to the end
-- then, and all others to the front.
local function make_room(at, lane, one, new)
    local furthest, bytes = 500, 1000000
    local function field(position) return string.format('%.0f:%.0f', lane.number, position) end
    -- Returns whether the message belongs before what stands there, and that.
    local function look(position)
        local packed = redis.call('HGET', at.held, field(position))
        if not packed then return true, {} end
        bytes = bytes - #packed
        local headers, history = outline(packed)
        return comes_before(one, came(history or '')), {position, packed, headers}
    end
    local function move(passed, by)
        for _, other in ipairs(passed) do
            local position, packed, headers = other[1], other[2], other[3]
            if packed then
                redis.call('HSET', at.held, field(position + by), packed)
                follow(headers, at.held, field(position), at.held, field(position + by))
                redis.call('HDEL', at.held, field(position))
            end
        end
    end
    local behind, before, count = {}, {}, lane.last - lane.first + 1
    for n = 0, math.min(count, furthest) - 1 do
        if bytes <= 0 then break end
        local goes_before, other = look(lane.last - n)
        if not goes_before then
            move(behind, 1)
            lane.last = lane.last + 1
            return lane.last - n
        end
        behind[n + 1] = other
        if not new then
            goes_before, other = look(lane.first + n)
            if goes_before then
                move(before, -1)
                lane.first = lane.first - 1
                return lane.first + n
            end
            before[n + 1] = other
        end
    end
    if new and #behind < count then
        lane.last = lane.last + 1
        return lane.last
    end
    lane.first = lane.first - 1
    return lane.first
end
