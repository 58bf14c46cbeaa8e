-- Acknowledge an entry and store the message that takes its place, in one step: a retry is neither lost nor doubled.
--
-- KEYS     task stream of the entry, task stream of the new message, delayed, delayed messages, wake
-- ARGV     group, consumer, entry id, due time in ms since the epoch (0 = now), member for the delayed set,
--          headers, properties, body, packed message (only read when there is a due time), history ('' = none)
-- Returns  1, or 0 when the entry was no longer ours: then nothing was stored either
-- Needs    open_full, owned, postpone, settle, settleable, succeed, wake
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local stream, target, delayed, messages, woken = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, id, due, member = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local headers, properties, body, packed, history = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
if not owned(stream, group, consumer, id) then return 0 end
open_full(stream)
settleable(stream, group)
if due <= 0 then
    local fields = {'headers', headers, 'properties', properties, 'body', body}
    if history ~= '' then
        fields[7], fields[8] = 'history', history
    end
    local copy = redis.call('XADD', target, '*', unpack(fields))
    pcall(succeed, headers, stream, id, target, copy) -- stored already: nothing may fail for its lock
    settle(stream, group, id)
    return 1
end
postpone(delayed, messages, member, due, packed)
pcall(succeed, headers, stream, id, delayed, member)
settle(stream, group, id)
wake(delayed, woken, member, due)
return 1
