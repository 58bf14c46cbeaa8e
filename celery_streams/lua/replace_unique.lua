-- Store a message of a unique task in the place of the one that holds its lock, and has not started.
--
-- KEYS     unique
-- ARGV     lock, task id of the message that holds it, group, priority step, headers, properties, body, then what the
--          names of the queue's streams end with, by priority step
-- Returns  1, or 0 when that message holds the lock no longer: then nothing was stored
-- Needs    carry_place, clock, holder_of, open_full, pack, put_ahead, settle, settleable, since, take_lock, unpacked
-- What is delayed or held stays where it is, and is due when it was. An entry goes before what waits on its stream, so
-- that one which is replaced again and again runs all the same; who has read it finds it gone when it starts. What the
-- entry was given to start with, the new one has.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local locks, lock, first, group, step = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local message = {headers = ARGV[5], properties = ARGV[6], body = ARGV[7]}
local known, base = holder_of(string.sub(locks, 1, -8), lock, clock())
if not known or known.id ~= first then return 0 end
open_full(locks)
if known.at == ':delayed' or known.at == ':held' then
    local packed = known.at == ':held' and ':held' or ':delayed:messages'
    local fields, before = unpacked(redis.call('HGET', base .. packed, known.entry) or '')
    redis.call('HSET', base .. packed, known.entry, pack(before or step, message, fields and fields[8] or ''))
    return 1
end
local key = base .. known.at
local stream = base .. string.gsub(known.at, ':front$', '')
local old = redis.call('XRANGE', key, known.entry, known.entry)[1][2]
local history = since(old[7] == 'history' and old[8], known.entry)
local fields = {'headers', ARGV[5], 'properties', ARGV[6], 'body', ARGV[7], 'history', history}
settleable(key, group)
local ahead, copy = put_ahead({}, stream, stream .. ':front', stream .. ':front:mark', group, fields)
settle(key, group, known.entry)
local at, steps = {held = base .. ':held'}, #ARGV - 7
for _, name in ipairs({'lanes', 'ready', 'ring', 'rates', 'places', 'running'}) do at[name] = at.held .. ':' .. name end
for place = 0, steps - 1 do
    if base .. ARGV[8 + place] == stream then
        local was = key == stream and place or steps + place
        carry_place(at, was .. ':' .. known.entry, (ahead and steps + place or place) .. ':' .. copy)
    end
end
take_lock(ahead and stream .. ':front' or stream, copy, lock, known)
return 1
