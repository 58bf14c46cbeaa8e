-- Make delayed messages due now.
--
-- KEYS     delayed, delayed messages
-- ARGV     members
-- Returns  how many were still delayed
-- Needs    clock, pack, unpacked
-- The history says that somebody asked for it: the eta in the headers lies ahead, and the message would go back.
-- Its text is added to, and not written anew: numbers in it would lose digits.
-- What was promoted meanwhile is left alone.
local delayed, messages = KEYS[1], KEYS[2]
local now = clock()
local hurried = 0
for _, member in ipairs(ARGV) do
    if redis.call('ZSCORE', delayed, member) then
        local packed = redis.call('HGET', messages, member)
        local fields, step = unpacked(packed or '')
        local history = fields and (fields[8] or '{}')
        if history and string.sub(history, 1, 1) == '{' and not string.find(history, '"hurried":', 1, true) then
            local rest = string.sub(history, 2)
            local with = '{"hurried":1' .. (string.find(rest, '^%s*}') and '' or ',') .. rest
            local message = {headers = fields[2], properties = fields[4], body = fields[6]}
            redis.call('HSET', messages, member, pack(step, message, with))
        end
        redis.call('ZADD', delayed, now, member)
        hurried = hurried + 1
    end
end
return hurried
