-- Needs    open_full, owned, settleable
-- Returns the fields of an entry that is pending for the consumer, and makes a full Redis take what is stored in its
-- place; nothing when it is not ours. One that somebody else deleted is acknowledged, and nobody's.
local function taken(key, group, consumer, id)
    if not owned(key, group, consumer, id) then return nil end
    local entry = redis.call('XRANGE', key, id, id)[1]
    if entry then
        open_full(key)
        settleable(key, group)
        return entry[2]
    end
    redis.call('XACK', key, group, id)
end
