-- Move an entry to the dead letters of its queue, with the reason.
--
-- KEYS     task stream, dead letters
-- ARGV     group, consumer, entry id, death (JSON), greatest number of dead letters (0 = no bound),
--          age in ms beyond which dead letters are deleted (or '' = never), greatest memory in bytes (0 = no bound),
--          the latest that it may be (ms since the epoch), then, only for a message that was acknowledged before it
--          ran, its fields
-- Returns  id of the dead letter, also of one that an earlier call stored whose reply was lost, or false when the entry
--          was no longer ours
-- Needs    clock, settle, size, storable, taken, unlock
-- An entry that another consumer holds, or that is not pending, is left alone.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- What tells a repetition is its dead letter, with the same death, among the newest: the entry is gone, and what was
-- acknowledged before it ran was nobody's already.
local stream, dead = KEYS[1], KEYS[2]
local group, consumer, id, death, most, age = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local memory, latest = tonumber(ARGV[7]), tonumber(ARGV[8])
local acknowledged = #ARGV > 8
local fields

-- Returns the id of the dead letter with this death, if it is one of the newest.
local function stored(count)
    local to, bytes = '+', 1000000
    for _ = 1, count do
        local newest = redis.call('XREVRANGE', dead, to, '-', 'COUNT', 1)[1]
        if not newest then return false end
        local known = newest[2]
        if known[#known - 1] == 'death' and known[#known] == death then return newest[1] end
        to, bytes = '(' .. newest[1], bytes - size(known)
        if bytes <= 0 then return false end
    end
    return false
end

if acknowledged then
    local before = stored(10)
    if before then return before end
    fields = {unpack(ARGV, 9)}
else
    local entry = taken(stream, group, consumer, id)
    if not entry then return stored(100) end
    fields = storable(entry)
end
fields[#fields + 1] = 'death'
fields[#fields + 1] = death
if age or memory > 0 then
    -- Refused at once, or what is stored already would seem not to be. So long a stream there is not.
    redis.call('XTRIM', dead, 'MAXLEN', 9007199254740991)
end
local letter
if most > 0 then
    letter = redis.call('XADD', dead, 'MAXLEN', most, '*', unpack(fields))
else
    letter = redis.call('XADD', dead, '*', unpack(fields))
end
if not acknowledged then
    settle(stream, group, id)
    unlock(fields[1] == 'headers' and fields[2], stream, id)
end
if age then
    -- By Redis' clock, which gave the ids: a worker's that is ahead would delete what has just died. But Redis' may be
    -- ahead for a moment, which deletes nothing either.
    local oldest = math.min(clock(), latest) - age
    if oldest > 0 then redis.call('XTRIM', dead, 'MINID', string.format('%.0f', oldest)) end
end
if memory > 0 then
    -- Exactly only when it may be too much: a guess from a few entries costs nothing, all of them a millisecond.
    local count = redis.call('XLEN', dead)
    local used = redis.pcall('MEMORY', 'USAGE', dead)
    if type(used) == 'number' and (used > memory / 2 or size(fields) * count > memory) then
        used = redis.call('MEMORY', 'USAGE', dead, 'SAMPLES', 0)
        if used > memory and count > 1 then
            -- Some at a time: a bound that was lowered shall not hold up Redis. The new one stays in any case.
            local drop = math.min(math.ceil(count * (used - memory) / used), 100, count - 1)
            redis.call('XTRIM', dead, 'MAXLEN', count - drop)
        end
    end
end
return letter
