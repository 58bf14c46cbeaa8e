-- Returns when a message came, of its priority step and its history or the id with which it was published: the messages
-- of a lane stand in this order. Nothing where nobody can tell.
local function came(step, history)
    local ms, seq = string.match(history, '^(%d+)%-(%d+)$')
    if not ms then ms, seq = string.match(history, '"first": ?"(%d+)%-(%d+)"') end
    return ms and {step, tonumber(ms), tonumber(seq)}
end
