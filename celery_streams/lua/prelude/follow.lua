-- Needs    held_lock, take_lock
-- Has the lock of a message, if it holds one, follow it from one place of its queue to another.
local function follow(headers, key, name, to_key, to_name)
    local lock, known = held_lock(headers, key, name)
    if lock then take_lock(to_key, to_name, lock, known) end
end
