-- Move messages from the tail of a list to the streams of a queue, or to its delayed messages.
--
-- KEYS     list, delayed, delayed messages, wake, then the task streams of the queue by priority step
-- ARGV     quadruples: the element, due time in ms since the epoch (0 = now), member for the delayed set,
--          packed message ('' = the element is no message: it becomes an entry that a worker will dead-letter)
-- Returns  positions (from 0) of the quadruples that were moved
-- An element that is no longer at the tail was taken by somebody else, and is left alone.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The ZREM of nothing makes a full Redis accept what follows, for the script frees what it stores.
local moved, earliest = {}, redis.call('ZRANGE', KEYS[2], 0, 0)[1]
redis.call('ZREM', KEYS[2], '')
for i = 1, #ARGV, 4 do
    local element, due, packed = ARGV[i], ARGV[i + 1], ARGV[i + 3]
    if redis.call('LINDEX', KEYS[1], -1) == element then
        if packed == '' then
            redis.call('XADD', KEYS[5], '*', 'element', element)
        elseif tonumber(due) > 0 then
            redis.call('HSET', KEYS[3], ARGV[i + 2], packed)
            redis.call('ZADD', KEYS[2], due, ARGV[i + 2])
        else
            local step, h, p, b, y, at = struct.unpack('>I4I4I4I4I4', packed)
            local fields = {
                'headers', string.sub(packed, at, at + h - 1),
                'properties', string.sub(packed, at + h, at + h + p - 1),
                'body', string.sub(packed, at + h + p, at + h + p + b - 1),
            }
            if y > 0 then
                fields[7], fields[8] = 'history', string.sub(packed, at + h + p + b)
            end
            redis.call('XADD', KEYS[5 + step], '*', unpack(fields))
        end
        redis.call('RPOP', KEYS[1])
        moved[#moved + 1] = (i - 1) / 4
    end
end
local head = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if head[1] and head[1] ~= earliest then redis.call('XADD', KEYS[4], 'MAXLEN', 1, '*', 'due', head[2]) end
return moved
