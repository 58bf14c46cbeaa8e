-- Set right what was measured by Redis' clock before it was set back, or by another one (a fail-over to another host).
--
-- KEYS     delayed, claims, then the task streams of the queue and their fronts
-- ARGV     group, greatest number of entries and delayed messages to look at, where to go on: index of a key from 3 on
--          (beyond the last: the delayed messages), and there the id behind which, or how many were looked at ('' = at
--          the beginning), then kinds of waits
-- Returns  {pending entries whose idle time begins anew, Redis' time in ms since the epoch, where to go on (two words,
--          the first is 0 when all was looked at), delayed messages of these kinds: member, when it is due}
-- Needs    clock, pending
-- An entry that was delivered "later" than now would not be idle before the clock has caught up. It cannot be told from
-- one that was delivered just now, so both begin anew: whoever is alive beats within its next round.
-- A message that waits for so long and no longer (a crash, a token of a rate limit) stands in the delayed set as
-- `...:KIND:...`; no eta does. What is due last comes first; the caller decides (see `advance`).
local delayed, claims = KEYS[1], KEYS[2]
local group, left, index, from = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local now, anew, found = clock(), 0, {}
if index == 3 and from == '' then redis.call('UNLINK', claims) end
while index <= #KEYS do
    local page = pending(KEYS[index], group, from == '' and '-' or '(' .. from, '+', left) or {}
    for _, held in ipairs(page) do
        if held[3] == 0 then
            redis.call('XCLAIM', KEYS[index], group, held[2], 0, held[1], 'TIME', string.format('%.0f', now), 'JUSTID')
            anew = anew + 1
        end
        from = held[1]
    end
    left = left - #page
    if left <= 0 then return {anew, now, index, from, found} end
    index, from = index + 1, ''
end
local looked = tonumber(from) or 0
local page = redis.call('ZRANGE', delayed, -looked - left, -looked - 1, 'WITHSCORES')
for i = #page - 1, 1, -2 do
    if tonumber(page[i + 1]) <= now then return {anew, now, 0, '', found} end
    for kind = 5, #ARGV do
        if string.find(page[i], ':' .. ARGV[kind] .. ':', 1, true) then
            found[#found + 1] = page[i]
            found[#found + 1] = page[i + 1]
            break
        end
    end
end
return {anew, now, #page < 2 * left and 0 or index, tostring(looked + left), found}
