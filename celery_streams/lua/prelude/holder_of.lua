-- Needs    names, unpacked
-- Returns what holds a lock, the base of its queue's keys, and the fields of its message; nothing when nobody does.
-- It is believed only while its message is where the lock says: so whatever deletes a message frees its lock, too.
-- The lock of a message that was retried to another queue says where to look further: for that message alone, since the
-- other queue's lock may be one's that has nothing to do with it.
-- Raises what Redis says when it forbids to look, for nobody knows then.
local function holder_of(base, lock, now)
    local function look(...)
        local reply = redis.pcall(...)
        local refusal = type(reply) == 'table' and reply['err']
        if not refusal then return reply end
        if string.find(refusal, 'WRONGTYPE', 1, true) then return {} end
        return redis.call(...)
    end
    local id
    for _ = 1, 10 do
        local said = redis.call('HGET', base .. ':unique', lock)
        local fine, known = pcall(cjson.decode, said or '')
        if not fine or type(known) ~= 'table' or (known.till and known.till <= now) then return nil end
        if id and known.id ~= id then return nil end
        if not known.base then
            local fields, packed
            if known.at == ':delayed' then
                local due = look('ZSCORE', base .. known.at, known.entry)
                packed = type(due) == 'string' and look('HGET', base .. ':delayed:messages', known.entry)
            elseif known.at == ':held' then
                packed = look('HGET', base .. known.at, known.entry)
            else
                local found = look('XRANGE', base .. known.at, known.entry, known.entry)[1]
                fields = found and found[2]
            end
            if type(packed) == 'string' then fields = unpacked(packed) end
            if fields and fields[1] == 'headers' and names(fields[2], lock, known) then return known, base, fields end
            return nil
        end
        base, id = known.base, known.id
    end
end
