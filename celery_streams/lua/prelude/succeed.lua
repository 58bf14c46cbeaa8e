-- Needs    clock, held_lock, holder_of, lock_anew, lock_of, take_lock
-- Has the lock of a message pass on to its retry, to another queue too: then the first queue's lock says where it is.
-- One that ended when the task started is taken again, where no newer message holds it: the retry waits.
local function succeed(headers, key, name, to_key, to_name)
    local lock, _, starting = lock_of(headers)
    if not lock then return end
    local base, to_base, now = string.match(key, '^(.*})'), string.match(to_key, '^(.*})'), clock()
    local _, known, locks = held_lock(headers, key, name)
    local other, other_base = holder_of(to_base, lock, now)
    if not known then
        if starting and not other then lock_anew(headers, to_key, to_name, now) end
        return
    end
    local same = other and other_base == base and other.at == known.at and other.entry == known.entry
    local left = cjson.encode({id = known.id, till = known.till, base = to_base})
    if not other or same then take_lock(to_key, to_name, lock, known) end
    if base ~= to_base then redis.pcall('HSET', locks, lock, left) end
end
