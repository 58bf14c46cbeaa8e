-- Add what a worker counted to the history of queues.
--
-- KEYS     for each queue: its tallies by the minute, and by ten minutes
-- ARGV     for each of both: ms of a step, steps that are kept; then for each queue what was counted: 'name=number ...'
-- Returns  {queues written, what Redis said of the first queue that it refused, or ''}
-- Needs    clock, each_queue
-- A step is a field, named by its number since the epoch. What has a name that this version does not know is kept, and
-- added up as the rest is: a later version counts it. A queue that is refused ends it for no other.
local now = clock()

local function sum(before, more)
    local found, order = {}, {}
    for _, said in ipairs({before, more}) do
        for name, number in string.gmatch(said, '([^%s=]+)=(%d+)') do
            if not found[name] then order[#order + 1] = name end
            found[name] = (found[name] or 0) + tonumber(number)
        end
    end
    for i, name in ipairs(order) do order[i] = string.format('%s=%.0f', name, found[name]) end
    return table.concat(order, ' ')
end

local function add(key, length, kept, counted)
    local step = math.floor(now / length)
    local field = string.format('%.0f', step)
    local before = redis.call('HGET', key, field)
    redis.call('HSET', key, field, sum(before or '', counted))
    if before then return end
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
        local age = step - (tonumber(all[i]) or 0)
        -- What lies ahead was written before the clock was set back.
        if age < 0 or age >= kept then redis.call('HDEL', key, all[i]) end
    end
    redis.call('PEXPIRE', key, string.format('%.0f', (kept + 1) * length))
end

return each_queue(2, function(i)
    local counted = ARGV[(i + 9) / 2]
    for at = 0, 1 do add(KEYS[i + at], tonumber(ARGV[2 * at + 1]), tonumber(ARGV[2 * at + 2]), counted) end
    return 1
end)
