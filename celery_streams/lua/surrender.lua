-- Move entries of a task stream to lists, as the elements they were turned into.
--
-- KEYS     task stream, then lists
-- ARGV     group, least idle time in ms ('' = entries that were not delivered yet), then triples: entry id,
--          index of the list (from 1), element
-- Returns  positions (from 0) of the triples that were moved
-- An entry that is gone, that was delivered meanwhile, or whose consumer gave a heartbeat, is left alone.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The XDEL of nothing makes a full Redis accept what follows, for the script frees what it stores.
local moved = {}
for i = 3, #ARGV, 3 do
    local id = ARGV[i]
    local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], id, id, 1)
    if held['err'] then held = {} end
    local ours
    if ARGV[2] == '' then
        ours = #held == 0
    else
        ours = #held == 1 and held[1][3] >= tonumber(ARGV[2])
    end
    if ours and #redis.call('XRANGE', KEYS[1], id, id) == 1 then
        redis.call('XDEL', KEYS[1], '0-0')
        redis.call('LPUSH', KEYS[1 + tonumber(ARGV[i + 1])], ARGV[i + 2])
        if ARGV[2] ~= '' then redis.call('XACK', KEYS[1], ARGV[1], id) end
        redis.call('XDEL', KEYS[1], id)
        moved[#moved + 1] = (i - 3) / 3
    end
end
return moved
