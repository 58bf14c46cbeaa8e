-- Put one entry back with a new history, now or after a delay.
--
-- KEYS     task stream, delayed, delayed messages, wake
-- ARGV     group, consumer, entry id, history (JSON), delay in ms (0 = now), member for the delayed set, priority step
-- Returns  1, or 0 when the entry was no longer ours
-- An entry that another consumer holds, or that is not pending, is left alone. An entry that is not a message goes back
-- at once: the delayed set keeps messages only.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- The XDEL of no entry makes a full Redis accept what follows, for the script frees what it stores.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
if not entry then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    return 0
end
redis.call('XDEL', KEYS[1], '0-0')
local kept, named = {}, {}
for i = 1, #entry[2], 2 do
    if entry[2][i] ~= 'history' then
        kept[#kept + 1] = entry[2][i]
        kept[#kept + 1] = entry[2][i + 1]
        named[entry[2][i]] = entry[2][i + 1]
    end
end
local delay = tonumber(ARGV[5])
local plain = #kept == 6 and named['headers'] and named['properties'] and named['body']
if delay <= 0 or not plain then
    kept[#kept + 1] = 'history'
    kept[#kept + 1] = ARGV[4]
    redis.call('XADD', KEYS[1], '*', unpack(kept))
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    redis.call('XDEL', KEYS[1], ARGV[3])
    return 1
end
local headers, properties, body = named['headers'], named['properties'], named['body']
local now = redis.call('TIME')
local due = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + delay
redis.call('HSET', KEYS[3], ARGV[6], struct.pack('>I4I4I4I4I4', tonumber(ARGV[7]), #headers, #properties, #body,
    #ARGV[4]) .. headers .. properties .. body .. ARGV[4])
redis.call('ZADD', KEYS[2], due, ARGV[6])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
if redis.call('ZRANGE', KEYS[2], 0, 0)[1] == ARGV[6] then
    redis.call('XADD', KEYS[4], 'MAXLEN', 1, '*', 'due', string.format('%.0f', due))
end
return 1
