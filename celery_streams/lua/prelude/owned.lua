-- Needs    pending
-- Tells whether an entry is pending for the consumer.
local function owned(key, group, consumer, id)
    local held = pending(key, group, id, id, 1, consumer)
    return held ~= nil and #held == 1
end
