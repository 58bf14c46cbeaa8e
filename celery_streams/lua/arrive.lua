-- Store elements that come from another database; the same tag again stores nothing.
--
-- KEYS     tags, then lists
-- ARGV     triples: tag, index of the list (from 1), element
-- Returns  number of elements stored
-- A tag stays until `forget_tags` is told that the other side has deleted its element.
-- The tag comes after the element: with the tag alone, a push that is refused would look like one that was carried out.
local tags = KEYS[1]
local count = 0
-- Refused at once: what was pushed and has no tag would be pushed again at each try.
redis.call('ZADD', tags, 'XX', 0, '\0')
for i = 1, #ARGV, 3 do
    local tag, list, element = ARGV[i], KEYS[1 + tonumber(ARGV[i + 1])], ARGV[i + 2]
    if not redis.call('ZSCORE', tags, tag) then
        redis.call('LPUSH', list, element)
        redis.call('ZADD', tags, '+inf', tag)
        if count == 0 then redis.call('PERSIST', tags) end
        count = count + 1
    end
end
return count
