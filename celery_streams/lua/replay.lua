-- Move a dead letter back to a task stream, as if it had just been published; run twice it moves once.
--
-- KEYS     dead letters, task stream
-- ARGV     id of the dead letter, then names of fields and what they shall hold instead
-- Returns  the new entry id, or false when there is no such dead letter
-- Needs    open_full, storable
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
open_full(dead)
local id = redis.call('XADD', stream, '*', unpack(storable(fields)))
redis.call('XDEL', dead, letter)
return id
