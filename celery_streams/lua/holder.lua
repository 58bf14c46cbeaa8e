-- Tell which message holds a lock.
--
-- KEYS     unique
-- ARGV     lock
-- Returns  task id of the message, and, unless it may be running, its headers and properties; nothing: there is none
-- Needs    clock, holder_of, unstarted
local locks, lock = KEYS[1], ARGV[1]
local known, _, fields = holder_of(string.sub(locks, 1, -8), lock, clock())
if not known then return {} end
local waits, starting = unstarted(known, fields)
if waits or starting then return {known.id, fields[2], fields[4]} end
return {known.id}
