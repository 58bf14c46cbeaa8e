-- Needs    lock_of, names
-- Returns the lock that a message holds which is at this key under this name, what the lock says, and its key; nothing
-- when the message is not unique, or another one holds the lock.
local function held_lock(headers, key, name)
    local lock = lock_of(headers)
    if not lock then return nil end
    local base, at = string.match(key, '^(.*})(.*)$')
    local said = redis.pcall('HGET', base .. ':unique', lock)
    local fine, known = pcall(cjson.decode, said or '')
    if fine and type(known) == 'table' and known.at == at and known.entry == name and names(headers, lock, known) then
        return lock, known, base .. ':unique'
    end
end
