-- Has the tokens and penalties of a queue go by themselves, a second after the last of them means nothing any more.
-- Nothing may fail for it: what stays takes memory, no more.
local function fade(at, now)
    local last = redis.pcall('ZRANGE', at.rates, -1, -1, 'WITHSCORES')[2]
    local wait = last and math.max(tonumber(last) - now, 0) + 1000
    if wait and wait < 1e14 then redis.pcall('PEXPIRE', at.rates, string.format('%.0f', wait)) end
end
