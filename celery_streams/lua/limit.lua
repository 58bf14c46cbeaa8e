-- Take a token of a rate limit, or reserve the next one (the generic cell rate algorithm, with no burst).
--
-- KEYS     the limit
-- ARGV     interval between two tokens in ms, horizon in ms
-- Returns  {0, 0}: take it now; {wait in ms, 1}: the token of that moment is reserved;
--          {wait in ms, 0}: it lies beyond the horizon, ask again then
-- Needs    open_full
local limit = KEYS[1]
local interval, horizon = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local free = tonumber(redis.call('GET', limit) or '0')
-- No token is reserved further ahead: the clock was set back, or the limit was a slower one.
if free - now > horizon + interval then free = now + math.min(interval, horizon) end
if free - now > horizon then return {math.ceil(horizon), 0} end
local at = math.max(free, now)
open_full(limit) -- its expiry is set again at once
redis.call('SET', limit, string.format('%.3f', at + interval), 'PX', math.ceil(at + interval - now + 1000))
if at <= now then return {0, 0} end
return {math.ceil(at - now), 1}
