-- Take elements from the tail of a list and keep them, each behind a tag, until another database has them.
--
-- KEYS     list, outgoing
-- ARGV     tags, all of one length; one for each element to take at most
-- Returns  number of elements taken
-- From here on nobody but a migration sees them: a worker that pops the list cannot run what is about to be copied.
for i, tag in ipairs(ARGV) do
    local element = redis.call('RPOP', KEYS[1])
    if not element then return i - 1 end
    redis.call('LPUSH', KEYS[2], tag .. element)
end
return #ARGV
