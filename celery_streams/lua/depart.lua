-- Take elements from the tail of a list and keep them, each behind a tag, until another database has them.
--
-- KEYS     list, outgoing
-- ARGV     greatest number of bytes to take, then tags, all of one length; one for each element to take at most
-- Returns  number of elements taken
-- Needs    open_full
-- From here on nobody but a migration sees them: a worker that pops the list cannot run what is about to be copied.
-- The element that goes beyond the bytes is taken still, so that one that is larger than all that departs too.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local list, outgoing, bytes = KEYS[1], KEYS[2], tonumber(ARGV[1])
local count = 0
open_full(list)
redis.call('RPOP', list, 0) -- refused at once: what could not be taken off the list would be stored at each try
for i = 2, #ARGV do
    local element = bytes > 0 and redis.call('LINDEX', list, -1)
    if not element then break end
    redis.call('LPUSH', outgoing, ARGV[i] .. element)
    redis.call('RPOP', list)
    count, bytes = count + 1, bytes - #element
end
return count
