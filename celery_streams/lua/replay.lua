-- Move a dead letter back to a task stream, as if it had just been published; run twice it moves once.
--
-- KEYS     dead letters, task stream
-- ARGV     id of the dead letter, then names of fields and what they shall hold instead
-- Returns  the new entry id; false when there is no such dead letter; {task id} of the message that holds the lock of
--          a unique one: then it stays where it is
-- Needs    clock, holder_of, lock_anew, lock_of, open_full, storable
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local dead, stream, letter = KEYS[1], KEYS[2], ARGV[1]
local entry = redis.call('XRANGE', dead, letter, letter)[1]
if not entry then return false end
local instead = {}
for i = 2, #ARGV, 2 do instead[ARGV[i]] = ARGV[i + 1] end
local fields = {}
for i = 1, #entry[2], 2 do
    local name = entry[2][i]
    if name ~= 'death' and name ~= 'history' then
        fields[#fields + 1] = name
        fields[#fields + 1] = instead[name] or entry[2][i + 1]
    end
end
local headers = fields[1] == 'headers' and fields[2]
local lock = lock_of(headers)
if lock then
    local holder = holder_of(string.match(stream, '^(.*})'), lock, clock())
    if holder then return {holder.id} end
end
open_full(dead)
redis.call('XDEL', dead, '0-0') -- refused at once: a letter that stays would be stored again at each try
local id = redis.call('XADD', stream, '*', unpack(storable(fields)))
redis.call('XDEL', dead, letter)
if lock then lock_anew(headers, stream, id, clock()) end
return id
