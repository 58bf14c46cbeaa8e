-- Move an entry to the dead letters of its queue, with the reason.
--
-- KEYS     task stream, dead letters
-- ARGV     group, consumer, entry id, death (JSON), greatest number of dead letters (0 = no bound),
--          id below which dead letters are too old (or '' = none),
--          then, only for a message that was acknowledged before it ran, its fields
-- Returns  id of the dead letter, or false when the entry was no longer ours
-- An entry that another consumer holds, or that is not pending, is left alone.
local fields
if #ARGV > 6 then
    fields = {}
    for i = 7, #ARGV do fields[#fields + 1] = ARGV[i] end
else
    if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return false end
    local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    if not entry then return false end
    redis.call('XDEL', KEYS[1], ARGV[3])
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
if ARGV[6] ~= '' then redis.call('XTRIM', KEYS[2], 'MINID', ARGV[6]) end
return id
