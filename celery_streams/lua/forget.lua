-- Delete consumers from the group, but never one that still holds an entry: XGROUP DELCONSUMER would strand it.
--
-- KEYS     task streams, then their fronts
-- ARGV     group, consumer ('' = every consumer that nobody heard of for so long), idle time in ms, number of task
--          streams, then, to be judged by what workers say of themselves, JSON: {"living": [consumer ...],
--          "nodes": {node name: idle time in ms of consumers of this node that are none of the living}}
-- Returns  number of consumers deleted
-- Needs    described, open_full, pending
-- A stream without the group has no consumers. A front that is empty goes with all its consumers: it is made again when
-- something is put back.
local group, consumer, idle, streams = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local said = ARGV[5] and cjson.decode(ARGV[5]) or {living = {}, nodes = {}}
local living = {}
for _, name in ipairs(said.living) do living[name] = true end
local count = 0

local function gone(known)
    if known.pending > 0 or living[known.name] then return false end
    return known.idle > (said.nodes[string.match(known.name, '^(.*)/') or ''] or idle)
end

for index, key in ipairs(KEYS) do
    if index > streams and redis.call('EXISTS', key) == 1 and redis.pcall('XLEN', key) == 0 then
        redis.call('UNLINK', key)
    elseif pending(key, group) then
        open_full(key) -- Redis 6.2 refuses XGROUP when it is full
        local names = {}
        if consumer ~= '' then
            names[1] = consumer
        else
            for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
                local known = described(flat)
                if gone(known) then names[#names + 1] = known.name end
            end
        end
        for _, name in ipairs(names) do
            if #redis.call('XPENDING', key, group, '-', '+', 1, name) == 0 then
                redis.call('XGROUP', 'DELCONSUMER', key, group, name)
                count = count + 1
            end
        end
    end
end
return count
