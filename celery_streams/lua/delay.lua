-- Store a message that is due later; wake the promoters when it is due before all others.
--
-- KEYS     delayed, delayed messages, wake, then, when there is a bound, task streams, fronts, held
-- ARGV     due time in ms since the epoch, member, packed message, greatest number of messages of the queue (0 = none)
-- Returns  Redis' time in ms, or 0 when the queue is full
-- Needs    clock, postpone, room, wake
-- A member that exists already is replaced: the same retry of the same task is stored once.
local delayed, messages, woken = KEYS[1], KEYS[2], KEYS[3]
local due, member, packed, bound = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local now = clock()
if bound > 0 and not redis.call('ZSCORE', delayed, member) and room(bound, delayed, 4) <= 0 then return 0 end
postpone(delayed, messages, member, due, packed)
wake(delayed, woken, member, due)
return now
