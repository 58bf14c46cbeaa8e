-- Store a message that is due later; wake the promoters when it is due before all others.
--
-- KEYS     delayed, delayed messages, wake, then the task streams of the queue (read only when there is a bound)
-- ARGV     due time in ms since the epoch, member, packed message, greatest number of messages of the queue (0 = none)
-- Returns  1, or 0 when the queue is full
-- A member that exists already is replaced: the same retry of the same task is stored once.
local bound = tonumber(ARGV[4])
if bound > 0 and not redis.call('ZSCORE', KEYS[1], ARGV[2]) then
    local held = redis.call('ZCARD', KEYS[1])
    for i = 4, #KEYS do held = held + redis.call('XLEN', KEYS[i]) end
    if held >= bound then return 0 end
end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
if redis.call('ZRANGE', KEYS[1], 0, 0)[1] == ARGV[2] then
    redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'due', ARGV[1])
end
return 1
