-- Returns how many entries count for a limit now.
local function counted(at, limit)
    return redis.call('ZLEXCOUNT', at.running, '[' .. limit .. '\0', '(' .. limit .. '\1')
end
