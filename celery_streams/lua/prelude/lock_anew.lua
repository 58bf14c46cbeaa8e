-- Needs    lock_of, take_lock
-- Takes the lock that a message names, which is at this key under this name; nobody else may hold it.
local function lock_anew(headers, key, name, now)
    local lock, lasts = lock_of(headers)
    local fine, known = pcall(cjson.decode, headers)
    local id = fine and known.id
    take_lock(key, name, lock, {id = type(id) == 'string' and id or '', till = lasts and now + lasts})
end
