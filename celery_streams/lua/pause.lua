-- Pause a queue, and say since when and why.
--
-- KEYS     paused
-- ARGV     reason
-- Returns  since when it is paused, in ms since the epoch
-- Needs    clock, open_full
-- One that is paused already stays so from its first moment on, with the new reason. The time is Redis', as that of
-- whoever looks.
local paused, reason = KEYS[1], ARGV[1]
local said = redis.call('GET', paused)
local since = said and string.match(said, '^%d+') or string.format('%.0f', clock())
open_full(paused)
redis.call('SET', paused, since .. ' ' .. reason)
return tonumber(since)
