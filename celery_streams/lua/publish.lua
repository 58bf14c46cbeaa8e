-- Append a message unless the queue is full (streams_max_length); without a bound a plain XADD is used instead.
--
-- KEYS     task stream of the message, delayed, then all task streams of the queue
-- ARGV     greatest number of messages of the queue, headers, properties, body
-- Returns  the entry id, or false when the queue is full: then nothing was stored
local held = redis.call('ZCARD', KEYS[2])
for i = 3, #KEYS do held = held + redis.call('XLEN', KEYS[i]) end
if held >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', 'headers', ARGV[2], 'properties', ARGV[3], 'body', ARGV[4])
