-- Give back the places of entries that are gone, and release who waited for them.
--
-- KEYS     what the queue holds back (see prelude/shelf), then its streams, fronts and marks
-- ARGV     group, number of task streams of a queue, limits that the caller knows of (JSON: task -> interval in ms,
--          limit, key_limit), then what the places are told by; behind '!' those whose tasks have ended
-- Returns  number of places given back
-- Needs    came, clock, comes_before, described, pending, queue_of, shelf, vacate
-- An entry that is still there keeps its place, whoever holds it: it is gone once it was settled, put back or deleted,
-- or was read and is nobody's, acknowledged by hand: then nobody will run it.
-- One that was acknowledged before its task ran is gone, too, and keeps its place until the task has ended.
local at, steps = shelf(1), tonumber(ARGV[2])
local group, queue = ARGV[1], queue_of(9, steps, ARGV[1], cjson.decode(ARGV[3]))
local count = 0

-- Tells whether an entry of a stream was delivered to somebody, and is pending for nobody.
local function is_nobodys(key, id)
    local held = pending(key, group, id, id, 1)
    if not held or #held > 0 then return false end
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
        local known = described(flat)
        if known.name == group then return not comes_before(came(known['last-delivered-id']), came(id)) end
    end
    return false
end

for i = 4, #ARGV do
    local ended, entry, index, id = string.match(ARGV[i], '^(!?)((%d+):(%d+%-%d+))$')
    local key = index and (queue.streams[index + 1] or queue.fronts[index - steps + 1])
    if key and (#redis.call('XRANGE', key, id, id) == 0 or (ended == '' and is_nobodys(key, id))) then
        local fine, place = pcall(cjson.decode, ended == '' and redis.call('HGET', at.places, entry))
        local runs = fine and type(place) == 'table' and place[5]
        if not runs and vacate(at, queue, entry, clock()) then count = count + 1 end
    end
end
return count
