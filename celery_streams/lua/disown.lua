-- Free the lock of a message that no worker will run, for its task was revoked.
--
-- KEYS     unique
-- ARGV     lock, task id of the message
-- Returns  1, or 0 when that message does not hold the lock, or may be running by now
-- Needs    clock, holder_of, unstarted
-- The message stays where it is: whoever finds it there when its time has come discards it.
local locks, lock, id = KEYS[1], ARGV[1], ARGV[2]
local known, base, fields = holder_of(string.sub(locks, 1, -8), lock, clock())
if not known or known.id ~= id then return 0 end
local waits, starting = unstarted(known, fields)
if not (waits or starting) then return 0 end
return redis.call('HDEL', base .. ':unique', lock)
