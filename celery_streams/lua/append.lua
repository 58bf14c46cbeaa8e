-- Append a message whose task is tracked; without a note a plain XADD is used instead.
--
-- KEYS     task stream
-- ARGV     headers, properties, body
-- Returns  the entry id
return redis.call('XADD', KEYS[1], '*', 'headers', ARGV[1], 'properties', ARGV[2], 'body', ARGV[3])
