-- Needs    fade, token
-- Takes a token of the rate of a lane, where it has one.
-- What comes a few milliseconds late does not put off those behind it.
local function take_token(at, known, now)
    if known.interval <= 0 then return end
    local free = math.min(token(at, known.rate), now + known.interval)
    if not at.tidied then redis.call('ZREMRANGEBYSCORE', at.rates, '-inf', now - 1000) end
    at.tidied = true
    fade(at, now, token(at, known.rate, math.max(free, now - 5) + known.interval))
end
