-- Note that the other database has deleted the elements of these tags, and forget those of which that is long known.
--
-- KEYS     tags
-- ARGV     seconds for which a tag is kept, then tags
-- Returns  number of tags whose elements may still be on the other side
-- They are kept for a while because another migration may have read an element just before it was deleted.
local now = tonumber(redis.call('TIME')[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]))
local open = redis.call('ZCOUNT', KEYS[1], '+inf', '+inf')
if open == 0 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return open
