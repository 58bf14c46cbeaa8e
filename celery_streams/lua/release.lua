-- Put un-started entries back for other consumers, with no delivery counted.
--
-- KEYS     task streams
-- ARGV     group, consumer, then pairs: index of the stream in KEYS, entry id;
--          no pair at all means everything that is pending for the consumer on these streams
-- Returns  number of entries put back
-- An entry that another consumer holds, or that is not pending, is left alone. The copy gets a new entry id at the
-- end of its stream, which also wakes a blocked reader; `first` in its history keeps the id it was published with.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The XDEL of no entry makes a full Redis accept what follows, for the script frees what it stores.
-- A stream without the group holds nothing.
local function put_back(key, id)
    local held = redis.pcall('XPENDING', key, ARGV[1], id, id, 1, ARGV[2])
    if held['err'] or #held == 0 then return 0 end
    local entry = redis.call('XRANGE', key, id, id)[1]
    if not entry then
        redis.call('XACK', key, ARGV[1], id)
        return 0
    end
    redis.call('XDEL', key, '0-0')
    local fields, has_history = entry[2], false
    for i = 1, #fields, 2 do
        if fields[i] == 'history' then has_history = true end
    end
    if not has_history then
        fields[#fields + 1] = 'history'
        fields[#fields + 1] = cjson.encode({first = id})
    end
    redis.call('XADD', key, '*', unpack(fields))
    redis.call('XACK', key, ARGV[1], id)
    redis.call('XDEL', key, id)
    return 1
end

local count = 0
if #ARGV > 2 then
    for i = 3, #ARGV, 2 do
        count = count + put_back(KEYS[tonumber(ARGV[i])], ARGV[i + 1])
    end
else
    for _, key in ipairs(KEYS) do
        local all = redis.pcall('XPENDING', key, ARGV[1], '-', '+', 10000, ARGV[2])
        if not all['err'] then
            for _, held in ipairs(all) do count = count + put_back(key, held[1]) end
        end
    end
end
return count
