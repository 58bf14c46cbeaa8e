-- Put a message that a stock worker has fetched back on its list, as kombu does after its visibility timeout.
--
-- KEYS     unacked, unacked_index, list
-- ARGV     delivery tag, element
-- Returns  1, or 0 when it was acknowledged or restored meanwhile: then nothing was done
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The ZREM of nothing makes a full Redis accept what follows, for the script frees what it stores.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], '')
redis.call('RPUSH', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
