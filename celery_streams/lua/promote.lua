-- Move messages whose time has come from the delayed set to their streams.
--
-- KEYS     for each queue: delayed, delayed messages, then its task streams by priority step
-- ARGV     number of task streams of a queue, greatest number of messages to move in all
-- Returns  {messages moved, members without a message, milliseconds until the next is due (-1 = nothing is delayed)}
-- A value that is no packed message becomes an entry with the one field `packed`: a worker will dead-letter it.
-- ZREM comes first: it frees memory, so that the script goes on when Redis is full.
local steps, left = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local moved, missing, nearest = 0, 0, -1
for base = 1, #KEYS, steps + 2 do
    local delayed, messages = KEYS[base], KEYS[base + 1]
    local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, left)
    for _, member in ipairs(due) do
        local packed = redis.call('HGET', messages, member)
        redis.call('ZREM', delayed, member)
        if packed then
            redis.call('HDEL', messages, member)
            local whole, step, h, p, b, y, at = pcall(struct.unpack, '>I4I4I4I4I4', packed)
            whole = whole and #packed == at - 1 + h + p + b + y
            local key = KEYS[base + 2 + (whole and math.min(step, steps - 1) or 0)]
            if not whole then
                redis.call('XADD', key, '*', 'packed', packed)
            else
                local headers = string.sub(packed, at, at + h - 1)
                local properties = string.sub(packed, at + h, at + h + p - 1)
                local body = string.sub(packed, at + h + p, at + h + p + b - 1)
                if y > 0 then
                    redis.call('XADD', key, '*', 'headers', headers, 'properties', properties, 'body', body,
                        'history', string.sub(packed, at + h + p + b))
                else
                    redis.call('XADD', key, '*', 'headers', headers, 'properties', properties, 'body', body)
                end
            end
            moved = moved + 1
        else
            missing = missing + 1
        end
    end
    left = left - #due
    local head = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    if head[2] then
        local wait = math.max(tonumber(head[2]) - now, 0)
        if nearest < 0 or wait < nearest then nearest = wait end
    end
    if left <= 0 then
        nearest = 0
        break
    end
end
return {moved, missing, nearest}
