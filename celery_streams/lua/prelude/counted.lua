-- Returns how many entries count for a limit now. Redis is asked once in a script, and again when any place was given
-- back.
local function counted(at, limit)
    if not at.counts[limit] then
        at.counts[limit] = redis.call('ZLEXCOUNT', at.running, '[' .. limit .. '\0', '(' .. limit .. '\1')
    end
    return at.counts[limit]
end
