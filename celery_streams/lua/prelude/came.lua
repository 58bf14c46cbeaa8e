-- Returns when a message came, told by its history or by the id with which it was published: the messages of a lane,
-- which are of one priority, stand in this order. Nothing where nobody can tell.
local function came(history)
    local ms, seq = string.match(history, '^(%d+)%-(%d+)$')
    if not ms then ms, seq = string.match(history, '"first": ?"(%d+)%-(%d+)"') end
    return ms and {tonumber(ms), tonumber(seq)}
end
