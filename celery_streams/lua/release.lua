-- Put un-started entries back for other consumers, with no delivery counted.
--
-- KEYS     task streams
-- ARGV     group, consumer, greatest number of bytes to put back, then pairs: index of the stream in KEYS, entry id;
--          no pair at all means everything that is pending for the consumer on these streams
-- Returns  {number of entries put back, number of pairs that were looked at, 1 when there may be more}
-- Needs    open_full, owned, pending, settle, size, split, storable
-- An entry that another consumer holds, or that is not pending, is left alone. The copy gets a new entry id at the
-- end of its stream, which also wakes a blocked reader; `first` in its history keeps the id it was published with.
-- The entry that goes beyond the bytes is put back still, so that one that is larger than all that goes back too.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local group, consumer, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3])
local count, looked = 0, 0

local function put_back(key, id)
    looked = looked + 1
    if not owned(key, group, consumer, id) then return end
    local entry = redis.call('XRANGE', key, id, id)[1]
    if not entry then
        redis.call('XACK', key, group, id)
        return
    end
    open_full(key)
    local _, named = split(entry[2])
    bytes = bytes - size(entry[2])
    local fields = storable(entry[2])
    if not named.history then
        fields[#fields + 1] = 'history'
        fields[#fields + 1] = cjson.encode({first = id})
    end
    redis.call('XADD', key, '*', unpack(fields))
    settle(key, group, id)
    count = count + 1
end

if #ARGV > 3 then
    for i = 4, #ARGV, 2 do
        if bytes <= 0 then return {count, looked, 1} end
        put_back(KEYS[tonumber(ARGV[i])], ARGV[i + 1])
    end
    return {count, looked, 0}
end
for _, key in ipairs(KEYS) do
    for _, held in ipairs(pending(key, group, '-', '+', 1000, consumer) or {}) do
        if bytes <= 0 then return {count, looked, 1} end
        put_back(key, held[1])
    end
end
return {count, looked, looked >= 1000 and 1 or 0}
