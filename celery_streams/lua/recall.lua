-- Put a message that a stock worker has fetched back on its list, as kombu does after its visibility timeout.
--
-- KEYS     unacked, unacked_index, list
-- ARGV     delivery tag, element
-- Returns  1, or 0 when it was acknowledged or restored meanwhile: then nothing was done
-- Needs    forgettable, open_full
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local unacked, index, list = KEYS[1], KEYS[2], KEYS[3]
local tag, element = ARGV[1], ARGV[2]
if redis.call('HEXISTS', unacked, tag) == 0 then return 0 end
open_full(unacked)
forgettable(index, unacked)
redis.call('RPUSH', list, element)
redis.call('HDEL', unacked, tag)
redis.call('ZREM', index, tag)
return 1
