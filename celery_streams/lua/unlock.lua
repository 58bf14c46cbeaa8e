-- Free the locks of unique messages that are gone.
--
-- KEYS     unique
-- ARGV     pairs: lock, what it said when somebody looked
-- Returns  number of locks freed
-- Needs    clock, holder_of
-- A lock whose message is still there, or that was taken anew meanwhile, is left alone.
local locks = KEYS[1]
local now, count = clock(), 0
for i = 1, #ARGV, 2 do
    if redis.call('HGET', locks, ARGV[i]) == ARGV[i + 1] and not holder_of(string.sub(locks, 1, -8), ARGV[i], now) then
        count = count + redis.call('HDEL', locks, ARGV[i])
    end
end
return count
