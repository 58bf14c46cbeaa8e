-- Put one entry back with a new history, now or after a delay.
--
-- KEYS     the task stream or its front; the task stream, its front, its mark; delayed, delayed messages, wake
-- ARGV     group, consumer, entry id, history (JSON), delay in ms (0 = now), member for the delayed set, priority step,
--          1 = behind what waits (0 = before it)
-- Returns  1, or 0 when the entry was no longer ours
-- Needs    clock, follow, pack, postpone, put_ahead, settle, split, storable, taken, wake
-- An entry that another consumer holds, or that is not pending, is left alone. An entry that is not a message goes back
-- at once: the delayed set keeps messages only.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local key, stream, front, mark = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local delayed, messages, woken = KEYS[5], KEYS[6], KEYS[7]
local group, consumer, id, history, delay, member = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local step, behind = tonumber(ARGV[7]), ARGV[8] == '1'
local entry = taken(key, group, consumer, id)
if not entry then return 0 end
local kept, named, plain = split(entry)
if delay <= 0 or not plain then
    kept = storable(kept)
    kept[#kept + 1] = 'history'
    kept[#kept + 1] = history
    if behind then
        follow(named.headers, key, id, stream, redis.call('XADD', stream, '*', unpack(kept)))
    else
        local ahead, copy = put_ahead({}, stream, front, mark, group, kept)
        follow(named.headers, key, id, ahead and front or stream, copy)
    end
    settle(key, group, id)
    return 1
end
local due = clock() + delay
postpone(delayed, messages, member, due, pack(step, named, history))
follow(named.headers, key, id, delayed, member)
settle(key, group, id)
wake(delayed, woken, member, due)
return 1
