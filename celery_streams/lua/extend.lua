-- Heartbeat: say that entries are still being worked on, by setting their idle time to zero.
--
-- KEYS     task streams
-- ARGV     group, then triples: index of the stream in KEYS, consumer, entry id
-- Returns  positions (from 0) of the triples whose consumer no longer owns the entry; ids alone are not unique
-- The delivery count is left as it is (JUSTID). An entry that another consumer holds is left alone; one that is there
-- and that nobody holds (see `gather`) is the consumer's again.
-- On a stream without the group nothing is ours; it hides nothing of the others.
-- Raises   what else Redis says, after the others were told: a missing permission does not mean that it is not ours
local group = ARGV[1]
local lost, refusal = {}, nil
for i = 2, #ARGV, 3 do
    local key, consumer, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]
    -- Written out instead of `owned`: this runs for each running task, and a call costs more than the text.
    local held = redis.pcall('XPENDING', key, group, id, id, 1, consumer)
    local said = held['err']
    if said and not string.find(said, 'NOGROUP', 1, true) and not string.find(said, 'WRONGTYPE', 1, true) then
        refusal = {key, group, id, id, 1, consumer}
    elseif not said and #held == 1 then
        redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
    else
        local other = not said and redis.call('XPENDING', key, group, id, id, 1)
        if other and (#other == 0 or other[1][2] == 'nobody') and #redis.call('XRANGE', key, id, id) == 1 then
            redis.call('XCLAIM', key, group, consumer, 0, id, 'FORCE', 'JUSTID')
        else
            lost[#lost + 1] = (i - 2) / 3
        end
    end
end
if refusal then return redis.call('XPENDING', unpack(refusal)) end -- once more, to raise: it then says where
return lost
