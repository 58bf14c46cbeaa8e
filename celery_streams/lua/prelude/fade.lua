-- Has the tokens and penalties of a queue go by themselves, some seconds after the last of them means nothing any more.
-- `latest` is the one that was just written; where those of before last longer, as they mostly do, nothing is to do.
-- Nothing may fail for it: what stays takes memory, no more.
local function fade(at, now, latest)
    local left = redis.pcall('PTTL', at.rates)
    local lasts = type(left) == 'number' and left >= 0
    if lasts and now + left >= latest + 1000 then return end
    if not lasts then
        local last = redis.pcall('ZRANGE', at.rates, -1, -1, 'WITHSCORES')[2]
        latest = last and math.max(tonumber(last), latest) or latest
    end
    local wait = math.max(latest - now, 0) + 10000
    if wait < 1e14 then
        redis.pcall('PEXPIRE', at.rates, string.format('%.0f', wait))
    else
        redis.pcall('PERSIST', at.rates)
    end
end
