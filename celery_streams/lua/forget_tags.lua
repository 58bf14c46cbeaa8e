-- Note that the other database has deleted the elements of these tags, and forget those of which that is long known.
--
-- KEYS     tags
-- ARGV     seconds for which a tag is kept, then tags
-- Returns  number of tags whose elements may still be on the other side
-- They are kept for a while because another migration may have read an element just before it was deleted.
local tags, keep = KEYS[1], tonumber(ARGV[1])
local now = tonumber(redis.call('TIME')[1])
for i = 2, #ARGV do redis.call('ZADD', tags, 'XX', now, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', tags, '-inf', now - keep)
local open = redis.call('ZCOUNT', tags, '+inf', '+inf')
if open == 0 then redis.call('EXPIRE', tags, keep) end
return open
