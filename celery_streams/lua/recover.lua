-- Put back what a dead consumer held: entries whose idle time reached the visibility timeout.
--
-- KEYS     delayed, delayed messages, wake, claims, then the task streams of the queue by priority step
-- ARGV     group, our consumer, least idle time in ms, greatest number of entries, length of a turn in ms,
--          delivery limit, greatest back-off in ms
-- Returns  {entries put back, entries that had been deleted by someone else, exhausted}; exhausted is a list of
--          {index of the stream, entry id, fields}: these are now pending for our consumer, which must dead-letter them
-- One claimer looks in each turn, however many workers there are; a turn in which it found as many as it may put back is
-- given up, so that the rest need not wait for the next one. The crash is counted in `history`; the first
-- re-delivery is at once, the next ones wait 1, 2, 4 ... seconds. An entry that is not a message does not wait: the
-- delayed set keeps messages only. A stream without the group holds nothing that could be recovered.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local group, consumer, idle, left = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local limit, most = tonumber(ARGV[6]), tonumber(ARGV[7])
local streams = {}
for i = 5, #KEYS do
    local summary = redis.pcall('XPENDING', KEYS[i], group)
    if not summary['err'] and summary[1] > 0 then streams[#streams + 1] = i end
end
if #streams == 0 then return {0, 0, {}} end
-- Redis refuses SET when it is full, unless the script has written before; this writes nothing.
redis.call('ZREM', KEYS[1], '')
if not redis.call('SET', KEYS[4], consumer, 'NX', 'PX', ARGV[5]) then return {0, 0, {}} end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local moved, vanished, exhausted = 0, 0, {}
for _, i in ipairs(streams) do
    local key = KEYS[i]
    if left > 0 then
        for _, held in ipairs(redis.call('XPENDING', key, group, 'IDLE', idle, '-', '+', left)) do
            local id = held[1]
            local entry = redis.call('XRANGE', key, id, id)[1]
            left = left - 1
            if not entry then
                redis.call('XACK', key, group, id)
                vanished = vanished + 1
            else
                local kept, named = {}, {}
                for f = 1, #entry[2], 2 do
                    named[entry[2][f]] = entry[2][f + 1]
                    if entry[2][f] ~= 'history' then
                        kept[#kept + 1] = entry[2][f]
                        kept[#kept + 1] = entry[2][f + 1]
                    end
                end
                local fine, past = pcall(cjson.decode, named['history'] or '{}')
                if not fine or type(past) ~= 'table' then past = {} end
                if type(past.first) ~= 'string' then past.first = id end
                past.crashes = (tonumber(past.crashes) or 0) + 1
                past.redelivered = 1
                past.worker = held[2]
                local plain = #kept == 6 and named['headers'] and named['properties'] and named['body']
                local delay = 0
                if plain and past.crashes > 1 then delay = math.min(1000 * 2 ^ (past.crashes - 2), most) end
                if past.crashes >= limit then
                    redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
                    exhausted[#exhausted + 1] = {i - 5, id, entry[2], held[2]}
                else
                    local history = cjson.encode(past)
                    if delay == 0 then
                        kept[#kept + 1] = 'history'
                        kept[#kept + 1] = history
                        redis.call('XADD', key, '*', unpack(kept))
                        redis.call('XACK', key, group, id)
                        redis.call('XDEL', key, id)
                    else
                        -- Entry ids are unique within one stream only.
                        local member = past.first .. ':crash:' .. past.crashes .. ':' .. (i - 5) .. ':' .. id
                        local headers, properties, body = named['headers'], named['properties'], named['body']
                        redis.call('HSET', KEYS[2], member, struct.pack('>I4I4I4I4I4', i - 5, #headers, #properties,
                            #body, #history) .. headers .. properties .. body .. history)
                        redis.call('ZADD', KEYS[1], now + delay, member)
                        redis.call('XACK', key, group, id)
                        redis.call('XDEL', key, id)
                        if redis.call('ZRANGE', KEYS[1], 0, 0)[1] == member then
                            redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'due', string.format('%.0f', now + delay))
                        end
                    end
                    moved = moved + 1
                end
            end
        end
    end
end
if left <= 0 then redis.call('UNLINK', KEYS[4]) end
return {moved, vanished, exhausted}
