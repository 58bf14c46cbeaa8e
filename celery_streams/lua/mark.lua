-- Note that a worker of another version began to read queues.
--
-- KEYS     for each queue its versions
-- ARGV     version, ms after which they expire, marks that are kept, then for each queue '1' if another living worker
--          of that version reads it
-- Returns  {marks written, what Redis said of the first queue that it refused, or ''}
-- Of workers that are replaced one by one only the first is noted, and none whose version others run already.
local version, written, refusal = ARGV[1], 0, ''

local function mark(key, known)
    local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if last and (known or last[2][2] == version) then
        redis.call('PEXPIRE', key, ARGV[2])
        return 0
    end
    redis.call('XADD', key, 'MAXLEN', ARGV[3], '*', 'v', version)
    redis.call('PEXPIRE', key, ARGV[2])
    return 1
end

for i, key in ipairs(KEYS) do
    local fine, said = pcall(mark, key, ARGV[i + 3] == '1')
    if fine then
        written = written + said
    elseif refusal == '' then
        refusal = type(said) == 'table' and said['err'] or tostring(said)
    end
end
return {written, refusal}
