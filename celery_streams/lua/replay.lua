-- Move a dead letter back to a task stream, as if it had just been published; run twice it moves once.
--
-- KEYS     dead letters, task stream
-- ARGV     id of the dead letter
-- Returns  the new entry id, or false when there is no such dead letter
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The XDEL of nothing makes a full Redis accept what follows, for the script frees what it stores.
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return false end
local fields = {}
for i = 1, #entry[2], 2 do
    if entry[2][i] ~= 'death' and entry[2][i] ~= 'history' then
        fields[#fields + 1] = entry[2][i]
        fields[#fields + 1] = entry[2][i + 1]
    end
end
redis.call('XDEL', KEYS[1], '0-0')
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XDEL', KEYS[1], ARGV[1])
return id
