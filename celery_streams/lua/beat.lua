-- Say that a worker lives, and what it reads.
--
-- KEYS     workers
-- ARGV     worker, what it says of itself, ms after which a silent worker is forgotten ('': not now)
-- Returns  number of workers that were forgotten
-- The time is Redis', for no two other clocks can be compared. A beat that lies as far ahead was written before the
-- clock was set back. What is no beat is forgotten, too.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
-- A full Redis refuses HSET, unless the script has written before; this writes nothing.
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now) .. ARGV[2])
local count = 0
if ARGV[3] ~= '' then
    local said = redis.call('HGETALL', KEYS[1])
    for i = 1, #said, 2 do
        local at = tonumber(string.match(said[i + 1], '^(%d+) ') or 0)
        if math.abs(now - at) > tonumber(ARGV[3]) then count = count + redis.call('HDEL', KEYS[1], said[i]) end
    end
end
return count
