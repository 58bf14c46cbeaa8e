-- Needs    fade
-- Takes what an entry needs to start: a token, and a place for each limit until the entry is gone.
-- What comes a few milliseconds late does not put off those behind it.
local function take_place(at, entry, lane, known, now)
    local taken = {'L' .. lane}
    if known.limit then taken[#taken + 1] = 'T' .. known.task end
    if known.key_limit then taken[#taken + 1] = 'K' .. known.key end
    redis.call('HSET', at.places, entry, cjson.encode({taken, string.format('%.0f', now), known.task, known.key or ''}))
    if known.interval > 0 then
        local free = math.min(tonumber(redis.call('ZSCORE', at.rates, known.rate) or 0), now + known.interval)
        redis.call('ZREMRANGEBYSCORE', at.rates, '-inf', now - 1000)
        redis.call('ZADD', at.rates, string.format('%.3f', math.max(free, now - 5) + known.interval), known.rate)
        fade(at, now)
    end
    for _, limit in ipairs(taken) do redis.call('ZADD', at.running, 0, limit .. '\0' .. entry) end
end
