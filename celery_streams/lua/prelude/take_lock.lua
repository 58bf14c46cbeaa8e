-- Writes a lock: its message is at this key, and there it is the entry, field or member of this name.
-- Nothing may fail for it: the message is stored already, and without a lock it is one that is not unique.
local function take_lock(key, name, lock, known)
    local base, at = string.match(key, '^(.*})(.*)$')
    known.base, known.at, known.entry = nil, at, name
    redis.pcall('HSET', base .. ':unique', lock, cjson.encode(known))
end
