-- Returns when the next token of a rate is there, or a penalty over (ms; 0: nothing is known of it); with `value`, sets
-- it first. Redis is asked once in a script for each.
local function token(at, name, value)
    if value then
        redis.call('ZADD', at.rates, string.format('%.3f', value), name)
        at.tokens[name], at.rated = value, true
    elseif not at.tokens[name] then
        at.tokens[name] = tonumber(redis.call('ZSCORE', at.rates, name) or 0)
    end
    return at.tokens[name]
end
