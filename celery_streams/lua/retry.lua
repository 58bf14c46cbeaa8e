-- Acknowledge an entry and store the message that takes its place, in one step: a retry is neither lost nor doubled.
--
-- KEYS     task stream of the entry, task stream of the new message, delayed, delayed messages, wake
-- ARGV     group, consumer, entry id, due time in ms since the epoch (0 = now), member for the delayed set,
--          headers, properties, body, packed message (only read when there is a due time)
-- Returns  1, or 0 when the entry was no longer ours: then nothing was stored either
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The XDEL of no entry makes a full Redis accept what follows, for the script frees what it stores.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], '0-0')
local due = tonumber(ARGV[4])
if due <= 0 then
    redis.call('XADD', KEYS[2], '*', 'headers', ARGV[6], 'properties', ARGV[7], 'body', ARGV[8])
else
    redis.call('HSET', KEYS[4], ARGV[5], ARGV[9])
    redis.call('ZADD', KEYS[3], due, ARGV[5])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
if due > 0 and redis.call('ZRANGE', KEYS[3], 0, 0)[1] == ARGV[5] then
    redis.call('XADD', KEYS[5], 'MAXLEN', 1, '*', 'due', ARGV[4])
end
return 1
