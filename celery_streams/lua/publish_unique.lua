-- Store a message of a unique task, now or for later, with its lock; unless a message that is there holds the lock.
--
-- KEYS     unique, task stream of the message, delayed, delayed messages, wake, then, when there is a bound, task
--          streams, fronts, held
-- ARGV     lock, ms for which it lasts ('' = as long as the message is there), task id, token of this publish, due
--          time in ms since the epoch (0 = now), member for the delayed set, greatest number of messages of the queue
--          (0 = none), headers, properties, body, packed message (only read when there is a due time)
-- Returns  {1, entry id or member}; {0, task id of the message that holds the lock, and, unless it may be running, its
--          headers and properties}; or {-1} when the queue is full: then nothing was stored
-- Needs    clock, holder_of, postpone, room, take_lock, unstarted, wake
-- The same token again, for a reply was lost, stores nothing.
local locks, stream, delayed, messages, woken = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local lock, lasts, id, token = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local due, member, bound = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local headers, properties, body, packed = ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local now = clock()
local known, _, fields = holder_of(string.sub(locks, 1, -8), lock, now)
if known then
    if known.token == token then return {1, known.entry} end
    local waits, starting = unstarted(known, fields)
    if waits or starting then return {0, known.id, fields[2], fields[4]} end
    return {0, known.id}
end
if bound > 0 and room(bound, delayed, 6) <= 0 then return {-1} end
local key, name = stream, member
if due > 0 then
    postpone(delayed, messages, member, due, packed)
    key = delayed
else
    name = redis.call('XADD', stream, '*', 'headers', headers, 'properties', properties, 'body', body)
end
take_lock(key, name, lock, {id = id, token = token, till = lasts and now + lasts})
if due > 0 then wake(delayed, woken, member, due) end
return {1, name}
