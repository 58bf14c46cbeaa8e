-- Put un-started entries back for other consumers, before what waits, with no delivery counted.
--
-- KEYS     quadruples: a task stream or its front; the task stream, its front, its mark
-- ARGV     group, consumer, greatest number of bytes to put back, then pairs: index of the quadruple (from 1), entry
--          id; no pair at all means everything that is pending for the consumer on the first of each quadruple
-- Returns  {number of entries put back, number of entries that were looked at, 1 when there may be more}
-- Needs    follow, pending, put_ahead, settle, since, size, split, storable, taken
-- An entry that another consumer holds, or that is not pending, is left alone. The copy gets a new entry id; `first` in
-- its history keeps the id it was published with.
-- The entry that goes beyond the bytes is put back still, so that one that is larger than all that goes back too.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local group, consumer, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3])
local count, looked, targets = 0, 0, {}

local function put_back(at, id)
    local key, stream, front, mark = KEYS[at], KEYS[at + 1], KEYS[at + 2], KEYS[at + 3]
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
    local ahead, copy = put_ahead(targets, stream, front, mark, group, fields)
    follow(named.headers, key, id, ahead and front or stream, copy)
    settle(key, group, id)
    count = count + 1
end

if #ARGV > 3 then
    for i = 4, #ARGV, 2 do
        if bytes <= 0 then return {count, looked, 1} end
        put_back(4 * tonumber(ARGV[i]) - 3, ARGV[i + 1])
    end
    return {count, looked, 0}
end
for at = 1, #KEYS, 4 do
    for _, held in ipairs(pending(KEYS[at], group, '-', '+', 1000, consumer) or {}) do
        if bytes <= 0 then return {count, looked, 1} end
        put_back(at, held[1])
    end
end
return {count, looked, looked >= 1000 and 1 or 0}
