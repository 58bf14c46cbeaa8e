-- Needs    pending
-- Tells whether an entry is pending for the consumer. One that is there and that nobody holds, for somebody deleted its
-- consumer or acknowledged it by hand, is that of the consumer that has it, and so that asks: see `gather`.
local function owned(key, group, consumer, id)
    local held = pending(key, group, id, id, 1)
    if not held then return false end
    local holder = held[1] and held[1][2] or 'nobody'
    if holder == consumer then return true end
    if holder ~= 'nobody' or #redis.call('XRANGE', key, id, id) == 0 then return false end
    redis.call('XCLAIM', key, group, consumer, 0, id, 'FORCE', 'JUSTID')
    return true
end
