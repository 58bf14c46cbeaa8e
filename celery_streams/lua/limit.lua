-- Take a token of a rate limit, or reserve the next one (the generic cell rate algorithm, with no burst).
--
-- KEYS     the limit
-- ARGV     interval between two tokens in ms, horizon in ms
-- Returns  {0, 0}: take it now; {wait in ms, 1}: the token of that moment is reserved;
--          {wait in ms, 0}: it lies beyond the horizon, ask again then
local interval, horizon = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000
local free = tonumber(redis.call('GET', KEYS[1]) or '0')
if free - now > horizon then return {math.ceil(horizon), 0} end
local at = math.max(free, now)
-- Redis refuses SET when it is full, unless the script has written before; what this writes is overwritten at once.
redis.call('PERSIST', KEYS[1])
redis.call('SET', KEYS[1], string.format('%.3f', at + interval), 'PX', math.ceil(at + interval - now + 1000))
if at <= now then return {0, 0} end
return {math.ceil(at - now), 1}
