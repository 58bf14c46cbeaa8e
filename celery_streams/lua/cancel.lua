-- Take delayed messages away for good.
--
-- KEYS     delayed, delayed messages
-- ARGV     members
-- Returns  the packed message of each that was there, '' when it had none
-- Needs    forgettable, unlock, unpacked
-- What was promoted meanwhile is left alone.
local delayed, messages = KEYS[1], KEYS[2]
local found = {}
forgettable(delayed, messages)
for _, member in ipairs(ARGV) do
    local packed = redis.call('HGET', messages, member)
    if redis.call('ZREM', delayed, member) == 1 then
        found[#found + 1] = packed or ''
        redis.call('HDEL', messages, member)
        local fields = unpacked(found[#found])
        if fields then unlock(fields[2], delayed, member) end
    end
end
return found
