-- Read new entries of the highest priority that has any, without blocking.
--
-- KEYS     pairs: the front of a task stream, the task stream; in the order in which they shall be served; then what is
--          there while a queue is paused, for each queue, in the order of its pairs of one priority
-- ARGV     group, consumer, count (entries in all), width (pairs of the same priority, which stand side by side)
-- Returns  a list of {index of the stream in KEYS (from 1), entries as XREADGROUP gives them}, and, if any queue is
--          paused, {0, positions (from 0) of these queues}
-- Raises   NOGROUP when a task stream or its group is missing, or what else Redis said of a stream that it refused; but
--          not when something was found, which is pending now and would be forgotten: a later read raises
-- Nothing is settled here; what is returned is pending for the consumer. A missing group ends the read, so that it is
-- made again as soon as its queue comes first; a key of another type stays, and hides no other stream. A front is there
-- only while something was put back; one of another type holds nothing, and whoever would put something there is told.
local group, consumer, left, width = ARGV[1], ARGV[2], tonumber(ARGV[3]), 2 * tonumber(ARGV[4])
local found, refusal, paused = {}, nil, nil
local last = #KEYS - width / 2
-- One look for all of them, for hardly ever is any there; in pieces that Lua can pass.
local any = false
for at = last + 1, #KEYS, 5000 do
    any = any or redis.call('EXISTS', unpack(KEYS, at, math.min(at + 4999, #KEYS))) > 0
end
if any then
    paused = {}
    for at = last + 1, #KEYS do paused[at - last - 1] = redis.call('EXISTS', KEYS[at]) == 1 end
end
for index = 1, last do
    local key = KEYS[index]
    -- Fetched along, a lower priority would wait here behind a higher one, and others would overtake it.
    if #found > 0 and (index - 1) % width == 0 then break end
    local front = index % 2 == 1
    local passed = paused and paused[math.floor((index - 1) % width / 2)]
    if not passed and (not front or redis.call('EXISTS', key) == 1) then
        local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', left, 'STREAMS', key, '>')
        if front and reply and reply['err'] and string.find(reply['err'], 'NOGROUP', 1, true) then
            redis.pcall('XGROUP', 'CREATE', key, group, '0')
            reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', left, 'STREAMS', key, '>')
        end
        local nothing = front and reply and reply['err'] and string.find(reply['err'], 'WRONGTYPE', 1, true)
        if reply and reply['err'] then
            refusal = refusal or not nothing and reply or nil
            if string.find(reply['err'], 'NOGROUP', 1, true) then
                refusal = reply
                break
            end
        elseif reply then
            local entries = reply[1][2]
            found[#found + 1] = {index, entries}
            left = left - #entries
            if left <= 0 then break end
        end
    end
end
if #found == 0 and refusal then return refusal end
if paused then
    local queues = {}
    for position = 0, width / 2 - 1 do
        if paused[position] then queues[#queues + 1] = position end
    end
    found[#found + 1] = {0, queues}
end
return found
