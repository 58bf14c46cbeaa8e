-- Note that a worker of another version began to read queues.
--
-- KEYS     for each queue its versions
-- ARGV     version, ms after which they expire, marks that are kept, then for each queue '1' if another living worker
--          of that version reads it
-- Returns  {marks written, what Redis said of the first queue that it refused, or ''}
-- Needs    each_queue
-- Of workers that are replaced one by one only the first is noted, and none whose version others run already.
local version = ARGV[1]

local function mark(i)
    local key, known = KEYS[i], ARGV[i + 3] == '1'
    local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if last and (known or last[2][2] == version) then
        redis.call('PEXPIRE', key, ARGV[2])
        return 0
    end
    redis.call('XADD', key, 'MAXLEN', ARGV[3], '*', 'v', version)
    redis.call('PEXPIRE', key, ARGV[2])
    return 1
end

return each_queue(1, mark)
