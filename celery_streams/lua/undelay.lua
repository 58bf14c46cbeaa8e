-- Move delayed messages to lists, as the elements they were turned into.
--
-- KEYS     delayed, delayed messages, then lists
-- ARGV     quadruples: member, packed message as it was read, index of the list (from 1), element
-- Returns  positions (from 0) of the quadruples that were moved
-- Needs    forgettable, open_full, unlock, unpacked
-- A member that was promoted meanwhile, or whose message was replaced, is left alone.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local delayed, messages = KEYS[1], KEYS[2]
local moved = {}
open_full(delayed)
forgettable(delayed, messages)
for i = 1, #ARGV, 4 do
    local member, packed, list, element = ARGV[i], ARGV[i + 1], KEYS[2 + tonumber(ARGV[i + 2])], ARGV[i + 3]
    if redis.call('HGET', messages, member) == packed and redis.call('ZSCORE', delayed, member) then
        redis.call('LPUSH', list, element)
        redis.call('ZREM', delayed, member)
        redis.call('HDEL', messages, member)
        local fields = unpacked(packed)
        if fields then unlock(fields[2], delayed, member) end
        moved[#moved + 1] = (i - 1) / 4
    end
end
return moved
