-- Free the lock of an entry that was settled, or that starts and shall be the only one until then.
--
-- KEYS     task stream or front of the entry
-- ARGV     group, consumer, entry id, headers, '1' = it starts
-- Returns  1, or 0 when the entry was no longer ours, and may not start
-- Needs    owned, unlock
-- An entry that is still there, and shall not start, keeps its lock: it is somebody else's.
local key, group, consumer, id, headers, starts = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
if starts then
    if not owned(key, group, consumer, id) then return 0 end
elseif #redis.call('XRANGE', key, id, id) == 1 then
    return 0
end
unlock(headers, key, id)
return 1
