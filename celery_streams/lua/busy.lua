-- Tell which queues have pending entries.
--
-- KEYS     the task streams and fronts of all queues, queue after queue
-- ARGV     group, number of them for each queue
-- Returns  {Redis' time in ms since the epoch, indices (from 0) of the queues}
-- Needs    clock, pending
local group, steps = ARGV[1], tonumber(ARGV[2])
local found = {}
for base = 1, #KEYS, steps do
    for i = base, base + steps - 1 do
        local summary = pending(KEYS[i], group)
        if summary and summary[1] > 0 then
            found[#found + 1] = (base - 1) / steps
            break
        end
    end
end
return {clock(), found}
