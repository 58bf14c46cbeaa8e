-- Put un-started entries back for other consumers, with no delivery counted.
--
-- KEYS     task streams
-- ARGV     group, consumer, then pairs: index of the stream in KEYS, entry id;
--          no pair at all means everything that is pending for the consumer on these streams
-- Returns  number of entries put back
-- Needs    open_full, owned, pending, settle, split
-- An entry that another consumer holds, or that is not pending, is left alone. The copy gets a new entry id at the
-- end of its stream, which also wakes a blocked reader; `first` in its history keeps the id it was published with.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local group, consumer = ARGV[1], ARGV[2]

local function put_back(key, id)
    if not owned(key, group, consumer, id) then return 0 end
    local entry = redis.call('XRANGE', key, id, id)[1]
    if not entry then
        redis.call('XACK', key, group, id)
        return 0
    end
    open_full(key)
    local fields = entry[2]
    local _, named = split(fields)
    if not named.history then
        fields[#fields + 1] = 'history'
        fields[#fields + 1] = cjson.encode({first = id})
    end
    redis.call('XADD', key, '*', unpack(fields))
    settle(key, group, id)
    return 1
end

local count = 0
if #ARGV > 2 then
    for i = 3, #ARGV, 2 do
        count = count + put_back(KEYS[tonumber(ARGV[i])], ARGV[i + 1])
    end
else
    for _, key in ipairs(KEYS) do
        for _, held in ipairs(pending(key, group, '-', '+', 10000, consumer) or {}) do
            count = count + put_back(key, held[1])
        end
    end
end
return count
