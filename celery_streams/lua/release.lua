-- Release what was held back and may start now.
--
-- KEYS     for each queue: what it holds back (see prelude/shelf), then its streams, fronts and marks
-- ARGV     group, number of task streams of a queue, greatest number of messages in all, limits that the caller knows
--          of (JSON: task -> interval in ms, limit, key_limit), '1' = look at all lanes, for limits have changed
-- Returns  {messages released, ms until the next look (-1 = nothing waits for a time)}
-- Needs    clock, lane_in, line_up, movable, next_turn, queue_of, release_lane, release_next, shelf
-- A lane that may go on comes behind the others of its priority that may.
local group, steps, left = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local limits, all = cjson.decode(ARGV[4]), ARGV[5] == '1'
local now = clock()
local count, nearest = 0, -1

-- Returns when (ms) the next lane is looked at; nothing where none waits for a time.
local function next_time(at)
    return tonumber(redis.call('ZRANGE', at.ready, 0, 0, 'WITHSCORES')[2])
end

-- Has a lane know the limits that are in force, for those who release of it and know none; returns what it says.
local function told(at, lane)
    local known = lane_in(redis.call('HGET', at.lanes, lane))
    local now_in_force = known and limits[known.task]
    if now_in_force then
        known.interval, known.limit = now_in_force.interval or 0, now_in_force.limit
        known.key_limit = known.key and now_in_force.key_limit or nil
        redis.call('HSET', at.lanes, lane, cjson.encode(known))
    end
    return known
end

-- Counts what `release_lane` released of a lane; or has that wait for what bars it.
local function went(at, queue, lane, barrier, till)
    if barrier == 'E' then
        redis.call('ZREM', at.ready, lane)
    elseif barrier then
        line_up(at, lane, barrier, till)
    else
        count, left = count + 1, left - 1
        if till then queue.more[till] = true end
    end
end

-- Releases what waits for the tokens of a rate that several lanes share, lane after lane in turn.
local function release_rate(at, queue, name)
    local limit = 'R' .. string.sub(name, 2)
    while left > 0 do
        local turn, lane = next_turn(at, limit)
        if not turn then
            redis.call('ZREM', at.ready, name)
            return
        end
        local barrier, till = release_lane(at, queue, lane, now)
        if barrier == limit then -- it keeps its turn
            redis.call('ZADD', at.ready, string.format('%.3f', till), name)
            return
        end
        redis.call('ZREM', at.ring, turn)
        went(at, queue, lane, barrier, till)
    end
end

local function look(base)
    local at, queue = shelf(base), queue_of(base + 8, steps, group, limits)
    if redis.call('EXISTS', at.held) == 0 then return end
    at.wake = nil -- whoever releases is told when to look again
    queue.more = {} -- tasks of which more may wait for places, which goes on as all that does
    if all then
        movable(at, now)
        for _, lane in ipairs(redis.call('ZRANGE', at.ready, 0, 9999)) do
            told(at, lane)
            if tonumber(redis.call('ZSCORE', at.ready, lane)) < 9e15 then redis.call('ZADD', at.ready, now, lane) end
        end
        for _, turn in ipairs(redis.call('ZRANGEBYLEX', at.ring, '-', '(b', 'LIMIT', 0, 10000)) do
            local kind, limit, lane = string.match(turn, '^(.)([^%z]*)%z[^%z]*%z(.*)$')
            local known = told(at, lane)
            if kind == 'R' then -- it keeps its turn
                redis.call('ZADD', at.ready, now, '\255' .. limit)
            else
                redis.call('ZREM', at.ring, turn)
                if known then line_up(at, lane, 'T' .. known.task) end
            end
        end
        for task in pairs(limits) do count = count + release_next(at, queue, task, now) end
    end
    local head = next_time(at)
    while left > 0 and head and head <= now do
        movable(at, now)
        local lanes = redis.call('ZRANGEBYSCORE', at.ready, '-inf', now, 'LIMIT', 0, math.min(left, 100))
        for _, lane in ipairs(lanes) do
            if string.byte(lane) == 255 then
                release_rate(at, queue, lane)
            else
                went(at, queue, lane, release_lane(at, queue, lane, now))
            end
        end
        head = next_time(at)
    end
    for task in pairs(queue.more) do
        count = count + release_next(at, queue, task, now)
        head = next_time(at)
    end
    if head then
        local wait = math.max(math.ceil(head - now), 0)
        if nearest < 0 or wait < nearest then nearest = wait end
    end
end

for base = 1, #KEYS, 8 + 3 * steps do look(base) end
return {count, nearest}
