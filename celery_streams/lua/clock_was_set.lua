-- Set right what was measured by Redis' clock before it was set back, or by another one (a fail-over to another host).
--
-- KEYS     delayed, wake, claims, then the task streams of the queue and their fronts
-- ARGV     group, then pairs: kind of a wait, longest wait of this kind in ms
-- Returns  {pending entries whose idle time begins anew, delayed messages that are due earlier}
-- Needs    clock, open_full, pending
-- An entry that was delivered "later" than now would not be idle before the clock has caught up. It cannot be told from
-- one that was delivered just now, so both begin anew: whoever is alive beats within its next round.
-- A message that waits for so long and no longer (a crash, a token of a rate limit) stands in the delayed set as
-- `...:KIND:...`; no eta does. Those of a kind keep their order and their distances. Run twice it changes nothing more.
local delayed, woken, claims = KEYS[1], KEYS[2], KEYS[3]
local group, now = ARGV[1], clock()
local anew, earlier = 0, 0
for i = 4, #KEYS do
    local from = '-'
    for _ = 1, 20 do
        local page = pending(KEYS[i], group, from, '+', 500) or {}
        for _, held in ipairs(page) do
            if held[3] == 0 then
                redis.call('XCLAIM', KEYS[i], group, held[2], 0, held[1], 'TIME', string.format('%.0f', now), 'JUSTID')
                anew = anew + 1
            end
            from = '(' .. held[1]
        end
        if #page < 500 then break end
    end
end
redis.call('UNLINK', claims)
local later = redis.call('ZRANGEBYSCORE', delayed, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 10000)
for i = 2, #ARGV, 2 do
    local kind, bound, furthest, found = ':' .. ARGV[i] .. ':', now + tonumber(ARGV[i + 1]), 0, {}
    for j = 1, #later, 2 do
        if string.find(later[j], kind, 1, true) then
            found[#found + 1] = j
            furthest = math.max(furthest, tonumber(later[j + 1]))
        end
    end
    if furthest > bound then
        for _, j in ipairs(found) do
            redis.call('ZADD', delayed, string.format('%.0f', tonumber(later[j + 1]) - (furthest - bound)), later[j])
        end
        earlier = earlier + #found
    end
end
if earlier > 0 then
    open_full(delayed)
    redis.call('XADD', woken, 'MAXLEN', 1, '*', 'due', string.format('%.0f', now))
end
return {anew, earlier}
