-- Tell which queues have pending entries.
--
-- KEYS     the task streams of all queues, queue after queue
-- ARGV     group, number of task streams of a queue
-- Returns  indices (from 0) of the queues
local steps, found = tonumber(ARGV[2]), {}
for base = 1, #KEYS, steps do
    for i = base, base + steps - 1 do
        local reply = redis.pcall('XPENDING', KEYS[i], ARGV[1])
        if type(reply) == 'table' and not reply['err'] and reply[1] > 0 then
            found[#found + 1] = (base - 1) / steps
            break
        end
    end
end
return found
