-- Tell which queues have pending entries, whether there is any entry at all, and whether any waits at a front.
--
-- KEYS     the task streams, then the fronts, queue after queue
-- ARGV     group, number of task streams of a queue
-- Returns  {Redis' time in ms since the epoch, indices (from 0) of the queues, 1 when all streams are empty, 1 when an
--          entry of a front is not pending}
-- Needs    clock, pending
local group, steps = ARGV[1], tonumber(ARGV[2])
local found, empty, waits = {}, 1, 0

-- Returns whether anything is pending there.
local function busy(key, front)
    local summary = pending(key, group)
    local held = summary and summary[1] or 0
    -- A front may be without the group until it is read.
    if summary and held == 0 and empty == 1 or front and waits == 0 then
        local length = redis.pcall('XLEN', key)
        if type(length) == 'number' then
            if length > 0 then empty = 0 end
            if front and length > held then waits = 1 end
        end
    end
    return held > 0
end

for base = 1, #KEYS, 2 * steps do
    local held = false
    for i = base, base + steps - 1 do held = held or busy(KEYS[i], false) end
    -- Hardly ever is any of them there.
    if redis.call('EXISTS', unpack(KEYS, base + steps, base + 2 * steps - 1)) > 0 then
        for i = base + steps, base + 2 * steps - 1 do held = busy(KEYS[i], true) or held end
    end
    if held then
        found[#found + 1] = (base - 1) / (2 * steps)
        empty = 0
    end
end
return {clock(), found, empty, waits}
