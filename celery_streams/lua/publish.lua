-- Append a message unless the queue is full (streams_max_length); without a bound a plain XADD is used instead.
--
-- KEYS     task stream of the message, delayed, then all task streams and fronts of the queue, and held
-- ARGV     greatest number of messages of the queue, headers, properties, body
-- Returns  the entry id, or false when the queue is full: then nothing was stored
-- Needs    room
local stream, delayed = KEYS[1], KEYS[2]
local bound, headers, properties, body = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
if room(bound, delayed, 3) <= 0 then return false end
return redis.call('XADD', stream, '*', 'headers', headers, 'properties', properties, 'body', body)
