-- Delete every key of a queue that nobody uses any more.
--
-- KEYS     task streams and their fronts, dead letters; delayed, delayed messages, migrating out, migrating in, held;
--          others
-- ARGV     number of streams (task streams, fronts and dead letters), '1' = messages go with it
-- Returns  number of messages that it holds (or held)
-- A queue that holds a message is left alone, unless the messages shall go with it.
local streams, regardless = tonumber(ARGV[1]), ARGV[2] == '1'
local count = redis.call('ZCARD', KEYS[streams + 1])
for at = 1, streams do count = count + redis.call('XLEN', KEYS[at]) end
for at = streams + 3, streams + 4 do count = count + redis.call('LLEN', KEYS[at]) end
count = count + redis.call('HLEN', KEYS[streams + 5])
if count == 0 or regardless then redis.call('UNLINK', unpack(KEYS)) end
return count
