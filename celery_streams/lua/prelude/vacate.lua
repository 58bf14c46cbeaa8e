-- Needs    leave_place, line_up, movable, next_turn, release_next, release_turn
-- Gives back the places of an entry, and releases who waited for them: other keys come before the next of this one.
-- Where somebody waits nothing is given back before he may be released: nobody else would ever do it.
local function vacate(at, queue, entry, now)
    local said = redis.call('HGET', at.places, entry)
    if not said then return false end
    local waits = redis.call('EXISTS', at.ring) == 1
    if waits then movable(at, now) end
    local place = leave_place(at, entry, said)
    if not place then return false end
    if not waits then return true end
    local key, task = 'K' .. place[4], 'T' .. place[3]
    local turn, lane = next_turn(at, key)
    if turn and next_turn(at, task) then
        redis.call('ZREM', at.ring, turn)
        line_up(at, lane, task)
    elseif turn and not release_turn(at, queue, turn, lane, now) then
        return true
    end
    release_next(at, queue, place[3], now)
    return true
end
