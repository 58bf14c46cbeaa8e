-- Move entries of a task stream, or its front, to lists, as the elements they were turned into.
--
-- KEYS     what the queue holds back (see prelude/shelf), then its streams, fronts and marks; then lists
-- ARGV     group, number of task streams of a queue, which of them it is (from 0; the fronts come behind), least idle
--          time in ms ('' = entries that were not delivered yet), then triples: entry id, index of the list (from 1),
--          element
-- Returns  positions (from 0) of the triples that were moved
-- Needs    open_full, pending, queue_of, quit_place, settle, settleable, shelf, unlock
-- An entry that is gone, that was delivered meanwhile, or whose consumer gave a heartbeat, is left alone.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local group, steps, place, idle = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local at, queue = shelf(1), queue_of(9, steps, group, {})
local stream, lists = KEYS[9 + place], 8 + 3 * steps
local moved = {}
for i = 5, #ARGV, 3 do
    local id, list, element = ARGV[i], KEYS[lists + tonumber(ARGV[i + 1])], ARGV[i + 2]
    local held = pending(stream, group, id, id, 1) or {}
    local ours
    if idle then
        ours = #held == 1 and held[1][3] >= idle
    else
        ours = #held == 0
    end
    local entry = ours and redis.call('XRANGE', stream, id, id)[1]
    if entry then
        open_full(stream)
        settleable(stream, group)
        redis.call('LPUSH', list, element)
        if idle then
            settle(stream, group, id)
        else
            redis.call('XDEL', stream, id)
        end
        unlock(entry[2][1] == 'headers' and entry[2][2], stream, id)
        quit_place(at, queue, place .. ':' .. id)
        moved[#moved + 1] = (i - 5) / 3
    end
end
return moved
