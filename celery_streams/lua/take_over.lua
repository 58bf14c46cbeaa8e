-- Turn an entry of a foreign stream into a message of a queue, once.
--
-- KEYS     tags, task stream, then the foreign stream when it is in this database
-- ARGV     tag, foreign group ('' = none), foreign entry id, then the fields of the message
-- Returns  1 when it was stored, 0 when it was before, or is no longer there
-- Needs    open_full, settle, settleable
-- The tag tells a repetition: where the foreign stream is in another database, its entry is deleted in another step.
-- Stored first, removed then: a store that is refused (a key of another type, a missing permission) loses nothing.
local tags, stream, foreign = KEYS[1], KEYS[2], KEYS[3]
local tag, group, entry = ARGV[1], ARGV[2], ARGV[3]
local stored = 0
if foreign and #redis.call('XRANGE', foreign, entry, entry) == 0 then return 0 end
open_full(stream)
-- Refused at once: what was stored and could not be noted or deleted would be stored again at each try.
if not foreign then
    redis.call('ZADD', tags, 'XX', 0, '\0')
elseif group ~= '' then
    settleable(foreign, group)
else
    redis.call('XDEL', foreign, '0-0')
end
if not redis.call('ZSCORE', tags, tag) then
    redis.call('XADD', stream, '*', unpack(ARGV, 4))
    if not foreign then
        redis.call('ZADD', tags, '+inf', tag)
        redis.call('PERSIST', tags)
    end
    stored = 1
end
if foreign then
    if group ~= '' then
        settle(foreign, group, entry)
    else
        redis.call('XDEL', foreign, entry)
    end
end
return stored
