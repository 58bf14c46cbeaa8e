-- Needs    counted, token
-- Returns what keeps a lane from starting one more now: 'R' and until when (ms), or the limit that is reached, if any.
-- 'R' alone is the lane's own time; behind it stands a rate that it shares, for whose tokens its lanes take turns.
-- No token is further ahead than an interval: else the clock was set back, or the limit was a slower one. Then it comes
-- an interval from now; written down, for at the next look now is later.
local function barred(at, lane, known, now)
    if at.rated == nil and known.interval == 0 then at.rated = redis.call('EXISTS', at.rates) == 1 end
    if at.rated ~= false then
        local free = token(at, known.rate)
        if free > now + known.interval then free = token(at, known.rate, now + known.interval) end
        free = math.max(free, token(at, '!' .. known.rate))
        local told = known.key and token(at, '!' .. known.key) or 0
        if told > math.max(free, now) then return 'R', told end
        if free > now then return lane == known.rate and 'R' or 'R' .. known.rate, free end
    end
    if known.key_limit and counted(at, 'K' .. known.key) >= known.key_limit then return 'K' .. known.key end
    if known.limit and counted(at, 'T' .. known.task) >= known.limit then return 'T' .. known.task end
end
