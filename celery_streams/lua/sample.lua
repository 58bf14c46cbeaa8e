-- Write down what queues hold: a sample of each, unless it is as it was.
--
-- KEYS     for each queue: history, delayed, dead, then its task streams, then their fronts
-- ARGV     group, number of task streams of a queue, samples that are kept, ms after which a history expires, ms
--          between two samples, ms for which a sample stands for those after it that say the same
-- Returns  {samples written, what Redis said of the first queue that it refused, or ''}
-- Needs    clock, described, each_queue, pending
-- A sample that says something else comes behind one of a moment before that says what stood until then: between two
-- samples nothing changed, or it changed evenly. Somebody who reads other queues besides may have written just now.
-- A queue that is refused (a key of another type) has no sample, and ends it for no other.
local group, steps, most, expiry = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local every, stands = tonumber(ARGV[5]), tonumber(ARGV[6])
local now = clock()

local function held_on(base)
    local waiting, held, added, streams = 0, 0, 0, 0
    local function count(key, length)
        if length == 0 then return end
        local summary = pending(key, group)
        local pended = summary and summary[1] or 0
        waiting, held = waiting + length - pended, held + pended
    end
    for i = base + 3, base + 2 + steps do
        if redis.call('EXISTS', KEYS[i]) == 1 then
            -- Without the permission for it nobody knows what was added.
            local reply = redis.pcall('XINFO', 'STREAM', KEYS[i])
            local about = reply['err'] and {length = redis.call('XLEN', KEYS[i])} or described(reply)
            count(KEYS[i], about.length)
            streams = streams + 1
            added = added and about['entries-added'] and added + about['entries-added']
        end
    end
    if redis.call('EXISTS', unpack(KEYS, base + 3 + steps, base + 2 + 2 * steps)) > 0 then
        for i = base + 3 + steps, base + 2 + 2 * steps do count(KEYS[i], redis.call('XLEN', KEYS[i])) end
    end
    local said = {
        'w', tostring(math.max(waiting, 0)), 'p', tostring(held),
        'd', tostring(redis.call('ZCARD', KEYS[base + 1])), 'x', tostring(redis.call('XLEN', KEYS[base + 2])),
    }
    if streams > 0 and added then
        said[#said + 1] = 'a'
        said[#said + 1] = string.format('%.0f', added)
    end
    return said
end

-- Returns how many samples were written.
local function write(base)
    local history, said = KEYS[base], held_on(base)
    local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
    if last then
        local age = now - tonumber(string.match(last[1], '^%d+'))
        if age >= 0 and age < every / 2 then return 0 end
        local same = table.concat(last[2], ' ') == table.concat(said, ' ')
        if same and age >= 0 and age < stands then return 0 end
        if not same and age > 1.5 * every and age < stands + every then
            redis.call('XADD', history, string.format('%.0f-0', now - every), unpack(last[2]))
        end
    end
    redis.call('XADD', history, 'MAXLEN', '~', most, '*', unpack(said))
    redis.call('PEXPIRE', history, expiry)
    return 1
end

return each_queue(2 * steps + 3, write)
