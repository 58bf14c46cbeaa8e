-- Acknowledge and delete entries that are done.
--
-- KEYS     task streams
-- ARGV     group, consumer, then pairs: index of the stream in KEYS, entry id
-- Returns  ids of the entries that were no longer ours
-- An entry that another consumer holds, or that is not pending, is left alone.
-- On a stream without the group nothing is ours; it hides nothing of the others.
local lost = {}
for i = 3, #ARGV, 2 do
    local key, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
    local held = redis.pcall('XPENDING', key, ARGV[1], id, id, 1, ARGV[2])
    if not held['err'] and #held == 1 then
        redis.call('XACK', key, ARGV[1], id)
        redis.call('XDEL', key, id)
    else
        lost[#lost + 1] = id
    end
end
return lost
