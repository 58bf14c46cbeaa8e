-- Move delayed messages to lists, as the elements they were turned into.
--
-- KEYS     delayed, delayed messages, then lists
-- ARGV     quadruples: member, packed message as it was read, index of the list (from 1), element
-- Returns  positions (from 0) of the quadruples that were moved
-- A member that was promoted meanwhile, or whose message was replaced, is left alone.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The ZREM of nothing makes a full Redis accept what follows, for the script frees what it stores.
local moved = {}
for i = 1, #ARGV, 4 do
    local member = ARGV[i]
    if redis.call('HGET', KEYS[2], member) == ARGV[i + 1] and redis.call('ZSCORE', KEYS[1], member) then
        redis.call('ZREM', KEYS[1], '')
        redis.call('LPUSH', KEYS[2 + tonumber(ARGV[i + 2])], ARGV[i + 3])
        redis.call('ZREM', KEYS[1], member)
        redis.call('HDEL', KEYS[2], member)
        moved[#moved + 1] = (i - 1) / 4
    end
end
return moved
