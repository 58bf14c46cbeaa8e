-- Move messages from the tail of a list to the streams of a queue, or to its delayed messages.
--
-- KEYS     list, delayed, delayed messages, wake, then the task streams of the queue by priority step
-- ARGV     quadruples: the element, due time in ms since the epoch (0 = now), member for the delayed set,
--          packed message ('' = the element is no message: it becomes an entry that a worker will dead-letter)
-- Returns  positions (from 0) of the quadruples that were moved
-- Needs    open_full, postpone, unpacked, wake
-- An element that is no longer at the tail was taken by somebody else, and is left alone.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local list, delayed, messages, woken = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local moved = {}
open_full(list)
redis.call('RPOP', list, 0) -- refused at once: what could not be taken off the list would be stored at each try
for i = 1, #ARGV, 4 do
    local element, due, member, packed = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
    if redis.call('LINDEX', list, -1) == element then
        if packed == '' then
            redis.call('XADD', KEYS[5], '*', 'element', element)
        elseif due > 0 then
            postpone(delayed, messages, member, due, packed)
        else
            local fields, step = unpacked(packed)
            redis.call('XADD', KEYS[5 + step], '*', unpack(fields))
        end
        redis.call('RPOP', list)
        if due > 0 then wake(delayed, woken, member, due) end
        moved[#moved + 1] = (i - 1) / 4
    end
end
return moved
