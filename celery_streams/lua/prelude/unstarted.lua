-- Needs    lock_of
-- Tells of the message that holds a lock whether it waits for its time (it is delayed, or held back), and whether its
-- lock ends when it starts: then it has not.
local function unstarted(known, fields)
    local _, _, starting = lock_of(fields[2])
    return known.at == ':delayed' or known.at == ':held', starting
end
