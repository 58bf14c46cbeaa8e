-- Read a stretch of the delayed messages, without taking anything, no more than a step may carry.
--
-- KEYS     delayed, delayed messages
-- ARGV     offset in the delayed set, greatest number of messages, and of bytes
-- Returns  triples: member, due time in ms since the epoch, packed message ('' = there is none)
-- The message that goes beyond the bytes is there still, so that one that is larger than all that can be moved too.
local delayed, messages = KEYS[1], KEYS[2]
local offset, most, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local flat = redis.call('ZRANGE', delayed, offset, offset + most - 1, 'WITHSCORES')
local found = {}
for i = 1, #flat, 2 do
    if bytes <= 0 then break end
    local packed = redis.call('HGET', messages, flat[i]) or ''
    found[#found + 1] = {flat[i], flat[i + 1], packed}
    bytes = bytes - #packed
end
return found
