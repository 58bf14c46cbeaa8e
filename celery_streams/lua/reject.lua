-- Move an entry to the dead letters of its queue, with the reason.
--
-- KEYS     task stream, dead letters
-- ARGV     group, consumer, entry id, death (JSON), greatest number of dead letters (0 = no bound),
--          age in ms beyond which dead letters are deleted (or '' = never),
--          then, only for a message that was acknowledged before it ran, its fields
-- Returns  id of the dead letter, or false when the entry was no longer ours
-- An entry that another consumer holds, or that is not pending, is left alone.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The XDEL of no entry makes a full Redis accept what follows, for the script frees what it stores.
-- A message that was acknowledged before it ran is nobody's, so what tells a repetition (the reply was lost) is its dead
-- letter, with the same death, among the newest.
local fields
if #ARGV > 6 then
    fields = {}
    for i = 7, #ARGV do fields[#fields + 1] = ARGV[i] end
    for _, letter in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 10)) do
        local known = letter[2]
        if known[#known - 1] == 'death' and known[#known] == ARGV[4] then return letter[1] end
    end
else
    if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return false end
    local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
    if not entry then
        redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
        return false
    end
    redis.call('XDEL', KEYS[1], '0-0')
    fields = entry[2]
end
fields[#fields + 1] = 'death'
fields[#fields + 1] = ARGV[4]
local id
if tonumber(ARGV[5]) > 0 then
    id = redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], '*', unpack(fields))
else
    id = redis.call('XADD', KEYS[2], '*', unpack(fields))
end
if #ARGV <= 6 then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    redis.call('XDEL', KEYS[1], ARGV[3])
end
if ARGV[6] ~= '' then
    -- By Redis' clock, which gave the ids: a worker's that is ahead would delete what has just died.
    local oldest = tonumber(redis.call('TIME')[1]) * 1000 - tonumber(ARGV[6])
    if oldest > 0 then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f', oldest)) end
end
return id
