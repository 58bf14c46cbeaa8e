-- Needs    held_lock
-- Frees the lock of a message that was at this key under this name, if it held one.
local function unlock(headers, key, name)
    local lock, _, locks = held_lock(headers, key, name)
    if lock then redis.pcall('HDEL', locks, lock) end
end
