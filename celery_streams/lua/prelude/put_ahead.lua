-- Needs    described
-- Stores an entry that shall run before what waits on its stream, and behind what was put ahead before it.
-- It goes to the front of the stream; or, while nothing waits there, or nothing but what was put ahead, to the end of
-- the stream itself, where readers that block are listening. `mark` holds the last entry that was put there so.
-- `targets` keeps for the rest of the script where entries of a stream go. Returns whether it is the front, and the id.
local function put_ahead(targets, stream, front, mark, group, fields)
    local target = targets[stream]
    if not target then
        local waiting = redis.call('XLEN', stream)
        if waiting > 0 then
            for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
                local known = described(flat)
                if known.name == group then waiting = waiting - known.pending end
            end
        end
        local last = waiting > 0 and redis.pcall('GET', mark)
        local ours = type(last) == 'string' and redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1][1] == last
        if waiting <= 0 or ours then
            target = stream
        else
            target = front
            if redis.call('EXISTS', front) == 0 then redis.call('XGROUP', 'CREATE', front, group, '0', 'MKSTREAM') end
        end
        targets[stream] = target
    end
    local id = redis.call('XADD', target, '*', unpack(fields))
    -- Without the mark the next one would overtake this one, no more; so nothing may fail for it.
    if target == stream then redis.pcall('SET', mark, id, 'PX', 3600000) end
    return target == front, id
end
