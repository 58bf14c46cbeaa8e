-- Say that a worker lives, and what it reads.
--
-- KEYS     workers
-- ARGV     worker, what it says of itself, ms after which a silent worker is forgotten ('': not now)
-- Returns  number of workers that were forgotten
-- Needs    clock, open_full
-- The time is Redis', for no two other clocks can be compared. A beat that lies as far ahead was written before the
-- clock was set back. What is no beat is forgotten, too.
local now = clock()
local said = string.format('%.0f ', now) .. ARGV[2]
if type(redis.pcall('HSET', KEYS[1], ARGV[1], said)) == 'table' then
    open_full(KEYS[1])
    redis.call('HSET', KEYS[1], ARGV[1], said) -- raises what Redis says, if it was not for lack of memory
end
local count = 0
if ARGV[3] ~= '' then
    local all = redis.call('HGETALL', KEYS[1])
    for i = 1, #all, 2 do
        local at = tonumber(string.match(all[i + 1], '^(%d+) ') or 0)
        if math.abs(now - at) > tonumber(ARGV[3]) then count = count + redis.call('HDEL', KEYS[1], all[i]) end
    end
end
return count
