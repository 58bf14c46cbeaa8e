-- Put what was held back to the end of its streams, where nothing limits it, some messages at a time.
--
-- KEYS     what the queue holds back (see prelude/shelf), then its streams, fronts and marks
-- ARGV     number of task streams of a queue, greatest number of messages, and of their bytes
-- Returns  number of messages put back; 0: nothing is held any more
-- Needs    first_of, follow, lane_in, movable, queue_of, shelf, take_first, unpacked
-- Lane after lane, each in its order. What was released and waits on a stream keeps its place until it is settled.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local at, steps, left, bytes = shelf(1), tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local queue = queue_of(9, steps, '', {})
local count = 0
if redis.call('EXISTS', at.held) == 0 then return 0 end
movable(at)

local function put(field, packed)
    local fields, step = unpacked(packed)
    local stream = queue.streams[math.min(step or 0, steps - 1) + 1]
    local id = redis.call('XADD', stream, '*', unpack(fields or {'packed', packed}))
    if fields then follow(fields[2], at.held, field, stream, id) end
    count, left, bytes = count + 1, left - 1, bytes - #packed
end

local lanes = redis.call('HGETALL', at.lanes)
for i = 1, #lanes, 2 do
    if lanes[i] ~= '' and left > 0 and bytes > 0 then
        local known = lane_in(lanes[i + 1]) or {first = 1, last = 0}
        local empty = known.first > known.last and not known.back
        while not empty and left > 0 and bytes > 0 do
            local field, packed, turn = first_of(at, known)
            if packed then put(field, packed) end
            empty = take_first(at, known, field, turn)
        end
        if empty then
            redis.call('HDEL', at.lanes, lanes[i])
        else
            redis.call('HSET', at.lanes, lanes[i], cjson.encode(known))
        end
    end
end
if count == 0 then
    -- Nobody's lane has them: somebody deleted what their order is told by.
    local some = redis.call('HSCAN', at.held, 0)[2]
    for i = 1, #some, 2 do
        put(some[i], some[i + 1])
        redis.call('HDEL', at.held, some[i])
    end
end
if redis.call('EXISTS', at.held) == 0 then redis.call('UNLINK', at.lanes, at.ready, at.ring) end
return count
