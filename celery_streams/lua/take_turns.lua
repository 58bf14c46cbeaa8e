-- Take turns at watching the delayed messages of queues: one worker leads, a deputy looks behind it, the others rest.
--
-- KEYS     pairs for each queue: turns, delayed
-- ARGV     worker, length of a turn in ms, ms after which a message that is still there is overdue,
--          1 = leave (a worker that stops)
-- Returns  {Redis' time in ms since the epoch, for each queue this worker's place (0 = it leads, 1 = it is the deputy,
--          2 = it rests), for each queue milliseconds until its next message is due (-1 = none)}
-- Needs    clock, open_full
-- A place is free again when its worker did not look for the length of its turn, or seems to have looked later than
-- now: then the clock was set back. Whoever rests and finds a message overdue takes the lead: its holder stands still.
-- What cannot be read or written (a key of another type) leaves the worker to watch: two that do are better than none.
local worker, length, overdue, leaves = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local now = clock()

-- Most queues delay nothing most of the time: one look for all of them, and one at all turns.
local delays, turns = {}, {}
for i = 1, #KEYS, 2 do
    turns[#turns + 1], delays[#delays + 1] = KEYS[i], KEYS[i + 1]
end
local any = redis.call('EXISTS', unpack(delays)) > 0
local kept = redis.call('MGET', unpack(turns))
local opened = false

local function next_due(delayed)
    if not any then return nil end
    local head = redis.pcall('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    if head['err'] or not head[2] then return nil end
    return math.max(math.min(tonumber(head[2]) - now, 86400000), -86400000)
end

-- Returns the places of others that are taken, whether this worker had the lead, or any, and whether its own lasts for
-- longer than half of a turn: then nothing has to be written.
local function places(said)
    local fine, found = pcall(cjson.decode, type(said) == 'string' and said or '[]')
    local others, led, had, lasting, count = {}, false, false, false, 0
    for i, place in ipairs(fine and type(found) == 'table' and found or {}) do
        if type(place) == 'table' then
            count = count + 1
            local till, lasts = tonumber(place[2]) or 0, tonumber(place[3]) or 0
            if place[1] == worker then
                led, had = i == 1, true
                lasting = lasts == length and till - now > length / 2 and till <= now + lasts
            elseif now < till and till <= now + lasts then
                others[#others + 1] = place
            end
        end
    end
    return others, led, had, lasting and count == #others + 1
end

-- Returns the place that this worker has from now on, and who has which; nothing when that stays as it was.
local function place_of(others, led, had, late)
    local ours = {worker, now + length, length}
    if leaves then
        if had then return 2, {others[1], others[2]} end
    elseif #others < 2 then
        if led or late or #others == 0 then return 0, {ours, others[1]} end
        return 1, {others[1], ours}
    elseif late then
        return 0, {ours, others[2]}
    end
    return 2, nil
end

local function take(key, said, delayed, late)
    local others, led, had, lasting = places(said)
    local place, holders = place_of(others, led, had, late)
    local stays = lasting and not leaves and (led and place == 0 or not led and place == 1)
    if holders and not stays then
        if not opened then open_full(delayed) end
        opened = true
        if #holders == 0 then
            redis.pcall('UNLINK', key)
        else
            redis.pcall('SET', key, cjson.encode(holders), 'PX', 2 * length)
        end
    end
    return place
end

local taken, waits = {}, {}
for i = 1, #KEYS, 2 do
    local wait = next_due(KEYS[i + 1])
    taken[#taken + 1] = take(KEYS[i], kept[(i + 1) / 2], KEYS[i + 1], wait and wait < -overdue)
    waits[#waits + 1] = wait and math.max(wait, 0) or -1
end
return {now, taken, waits}
