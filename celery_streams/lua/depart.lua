-- Take elements from the tail of a list and keep them, each behind a tag, until another database has them.
--
-- KEYS     list, outgoing
-- ARGV     tags, all of one length; one for each element to take at most
-- Returns  number of elements taken
-- Needs    open_full
-- From here on nobody but a migration sees them: a worker that pops the list cannot run what is about to be copied.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local list, outgoing = KEYS[1], KEYS[2]
open_full(list)
for i, tag in ipairs(ARGV) do
    local element = redis.call('LINDEX', list, -1)
    if not element then return i - 1 end
    redis.call('LPUSH', outgoing, tag .. element)
    redis.call('RPOP', list)
end
return #ARGV
