-- Move messages whose time has come from the delayed set to their streams, before what waits there.
--
-- KEYS     for each queue: delayed, delayed messages, then its task streams by priority step, then their fronts, then
--          their marks
-- ARGV     group, number of task streams of a queue, greatest number of messages to move in all, and of their bytes
-- Returns  {messages moved, members without a message, for each queue milliseconds until its next is due (-1 = nothing
--          is delayed; -2 = Redis refused; 0 = there may be more to move now), what Redis said about the first queue
--          that it refused, or ''}
-- Needs    clock, follow, forgettable, open_full, put_ahead, refusal_of, unpacked
-- The message that goes beyond the bytes is moved still, so that one that is larger than all that moves too.
-- A value that is no packed message becomes an entry with the one field `packed`: a worker will dead-letter it.
-- A message whose task no worker knew so far goes behind what waits: thousands of them would keep workers that do not
-- know them from all else.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing. The
-- rest of that queue stays where it is, and counts as nothing that is due; the other queues go on.
local group, steps, left, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = clock()
local moved, missing, waits, refusal = 0, 0, {}, ''

-- Returns the message of a refusal, or nothing.
local function refused(reply)
    return type(reply) == 'table' and reply['err'] and refusal_of(reply) or nil
end

-- Returns the message of a refusal, or nothing; and milliseconds until the next is due, -1 when there is none.
local function promote(base)
    local targets = {}
    local delayed, messages = KEYS[base], KEYS[base + 1]
    local due = redis.pcall('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, left)
    if refused(due) then return refused(due) end
    if #due > 0 then
        open_full(delayed)
        local fine, said = pcall(forgettable, delayed, messages)
        if not fine then return refusal_of(said) end
    end
    for _, member in ipairs(due) do
        local packed = redis.pcall('HGET', messages, member)
        if refused(packed) then return refused(packed) end
        if packed then
            local fields, step = unpacked(packed)
            local at = base + 2 + math.min(step or 0, steps - 1)
            local stream, front, mark = KEYS[at], KEYS[at + steps], KEYS[at + 2 * steps]
            local unknown = fields and fields[8] and string.find(fields[8], '"unknown":', 1, true)
            local fine, said, copy
            if unknown then
                said = redis.pcall('XADD', stream, '*', unpack(fields))
                fine, copy = not refused(said), said
            else
                fine, said, copy = pcall(put_ahead, targets, stream, front, mark, group, fields or {'packed', packed})
            end
            if not fine then return refusal_of(said) end
            if fields then follow(fields[2], delayed, member, said == true and front or stream, copy) end
            moved = moved + 1
            bytes = bytes - #packed
        else
            missing = missing + 1
        end
        redis.call('ZREM', delayed, member)
        if packed then redis.call('HDEL', messages, member) end
        left = left - 1
        if bytes <= 0 then return nil, 0 end
    end
    local head = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    -- A score may be any number, and infinite; a day is soon enough to look at it again.
    return nil, head[2] and math.min(math.max(tonumber(head[2]) - now, 0), 86400000) or -1
end

for base = 1, #KEYS, 3 * steps + 2 do
    if left <= 0 or bytes <= 0 then
        waits[#waits + 1] = 0
    else
        local said, wait = promote(base)
        if said and refusal == '' then refusal = said end
        waits[#waits + 1] = said and -2 or wait
    end
end
return {moved, missing, waits, refusal}
