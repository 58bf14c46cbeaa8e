-- Store elements that come from another database; the same tag again stores nothing.
--
-- KEYS     tags, then lists
-- ARGV     triples: tag, index of the list (from 1), element
-- Returns  number of elements stored
-- A tag stays until `forget_tags` is told that the other side has deleted its element.
local count = 0
for i = 1, #ARGV, 3 do
    if redis.call('ZADD', KEYS[1], 'NX', '+inf', ARGV[i]) == 1 then
        redis.call('LPUSH', KEYS[1 + tonumber(ARGV[i + 1])], ARGV[i + 2])
        count = count + 1
    end
end
if count > 0 then redis.call('PERSIST', KEYS[1]) end
return count
