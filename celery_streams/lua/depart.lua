-- Take elements from the tail of a list and keep them, each behind a tag, until another database has them.
--
-- KEYS     list, outgoing
-- ARGV     tags, all of one length; one for each element to take at most
-- Returns  number of elements taken
-- From here on nobody but a migration sees them: a worker that pops the list cannot run what is about to be copied.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The PERSIST of nothing makes a full Redis accept what follows, for the script frees what it stores.
redis.call('PERSIST', KEYS[1])
for i, tag in ipairs(ARGV) do
    local element = redis.call('LINDEX', KEYS[1], -1)
    if not element then return i - 1 end
    redis.call('LPUSH', KEYS[2], tag .. element)
    redis.call('RPOP', KEYS[1])
end
return #ARGV
