-- Needs    leave_place, line_up, movable, release_next
-- Gives back the places of an entry, and releases who waited for them: other keys come before the next of this one.
-- Where somebody waits nothing is given back before he may be released: nobody else would ever do it.
local function vacate(at, queue, entry, now)
    if not redis.call('HGET', at.places, entry) then return false end
    local waits = redis.call('EXISTS', at.ring) == 1
    if waits then movable(at) end
    local place = leave_place(at, entry)
    if not place then return false end
    if not waits then return true end
    local limit = 'K' .. place[4]
    local turn = redis.call('ZRANGEBYLEX', at.ring, '[' .. limit .. '\0', '(' .. limit .. '\1', 'LIMIT', 0, 1)[1]
    if turn then
        redis.call('ZREM', at.ring, turn)
        line_up(at, string.sub(turn, #limit + 19), 'T' .. place[3])
    end
    release_next(at, queue, place[3], now)
    return true
end
