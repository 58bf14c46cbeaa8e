-- Put un-started entries back for other consumers, before what waits, with no delivery counted.
--
-- KEYS     for each queue: what it holds back (see prelude/shelf), then its streams, fronts and marks
-- ARGV     group, consumer, number of task streams of a queue, greatest number of bytes to put back, then pairs: where
--          the entry is (from 0: the streams of the first queue, its fronts, the streams of the second ...), its id; no
--          pair at all means everything that is pending for the consumer
-- Returns  {number of entries put back, number of entries that were looked at, 1 when there may be more}
-- Needs    carry_place, follow, pending, put_ahead, queue_of, settle, shelf, since, size, split, storable, taken
-- An entry that another consumer holds, or that is not pending, is left alone. The copy gets a new entry id; `first` in
-- its history keeps the id it was published with. What the entry was given to start with, its copy has.
-- The entry that goes beyond the bytes is put back still, so that one that is larger than all that goes back too.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local group, consumer, steps, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local count, looked, known = 0, 0, {}

local function queue_at(number)
    if not known[number] then
        local base = number * (8 + 3 * steps) + 1
        known[number] = {at = shelf(base), queue = queue_of(base + 8, steps, group, {})}
    end
    return known[number]
end

-- Returns the key of a stream or front of a queue.
local function key_of(queue, place)
    return place < steps and queue.streams[place + 1] or queue.fronts[place - steps + 1]
end

local function put_back(number, place, id)
    local one = queue_at(number)
    local queue, step = one.queue, place % steps
    local key, stream, front = key_of(queue, place), queue.streams[step + 1], queue.fronts[step + 1]
    looked = looked + 1
    local entry = taken(key, group, consumer, id)
    if not entry then return end
    local kept, named, plain = split(entry)
    bytes = bytes - size(entry)
    local fields = plain and kept or storable(entry)
    if plain or not named.history then
        fields[#fields + 1] = 'history'
        fields[#fields + 1] = since(named.history, id)
    end
    local ahead, copy = put_ahead(queue.targets, stream, front, queue.marks[step + 1], group, fields)
    follow(named.headers, key, id, ahead and front or stream, copy)
    settle(key, group, id)
    carry_place(one.at, place .. ':' .. id, (ahead and steps + step or step) .. ':' .. copy)
    count = count + 1
end

if #ARGV > 4 then
    for i = 5, #ARGV, 2 do
        if bytes <= 0 then return {count, looked, 1} end
        local where = tonumber(ARGV[i])
        put_back(math.floor(where / (2 * steps)), where % (2 * steps), ARGV[i + 1])
    end
    return {count, looked, 0}
end
for number = 0, #KEYS / (8 + 3 * steps) - 1 do
    for step = 0, steps - 1 do
        for _, place in ipairs({steps + step, step}) do
            local key = key_of(queue_at(number).queue, place)
            for _, held in ipairs(pending(key, group, '-', '+', 1000, consumer) or {}) do
                if bytes <= 0 then return {count, looked, 1} end
                put_back(number, place, held[1])
            end
        end
    end
end
return {count, looked, looked >= 1000 and 1 or 0}
