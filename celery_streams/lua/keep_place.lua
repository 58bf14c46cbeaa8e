-- Have the places of an entry that was acknowledged before its task runs be kept, for as long as that runs.
--
-- KEYS     task stream or front of the entry, places
-- ARGV     entry id, what its place is told by, the worker by whose heartbeat it lives
-- Returns  1, or 0 when it has no places, or was not acknowledged
-- Nothing may fail for it: the entry is acknowledged already, and its task runs.
local key, places, id, entry = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if #redis.call('XRANGE', key, id, id) == 1 then return 0 end
local said = redis.pcall('HGET', places, entry)
if type(said) ~= 'string' then return 0 end
local place = cjson.decode(said)
place[5] = ARGV[3]
redis.pcall('HSET', places, entry, cjson.encode(place))
return 1
