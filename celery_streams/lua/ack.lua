-- Acknowledge and delete entries that are done.
--
-- KEYS     task streams
-- ARGV     group, consumer, then pairs: index of the stream in KEYS, entry id
-- Returns  positions (from 0) of the pairs whose entry was no longer ours; ids alone are not unique
-- An entry that another consumer holds, or that is not pending, is left alone.
-- On a stream without the group nothing is ours; it hides nothing of the others.
-- Raises   what else Redis says, with nothing acknowledged: a missing permission does not mean that it is not ours
local group, consumer = ARGV[1], ARGV[2]
local lost, ours = {}, {}
for i = 3, #ARGV, 2 do
    local key, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
    -- Written out instead of `owned`: this runs for each message, and a call costs more than the text.
    local held = redis.pcall('XPENDING', key, group, id, id, 1, consumer)
    local said = held['err']
    if said and not string.find(said, 'NOGROUP', 1, true) and not string.find(said, 'WRONGTYPE', 1, true) then
        return redis.call('XPENDING', key, group, id, id, 1, consumer) -- once more, to raise: it then says where
    end
    local ids = ours[key] or {}
    if not said and #held == 1 and not ids[id] then
        ids[id] = true
        ids[#ids + 1] = id
        ours[key] = ids
    else
        lost[#lost + 1] = (i - 3) / 2
    end
end
-- One call for many entries costs less than one for each; Lua passes no more than some thousand arguments.
for key, ids in pairs(ours) do
    for from = 1, #ids, 500 do
        local to = math.min(from + 499, #ids)
        redis.call('XACK', key, group, unpack(ids, from, to))
        redis.call('XDEL', key, unpack(ids, from, to))
    end
end
return lost
