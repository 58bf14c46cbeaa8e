-- Find entries that were delivered and are pending for nobody, and have them be pending for the consumer `nobody`.
--
-- KEYS     task streams and fronts
-- ARGV     group, index of the stream to begin with (from 0), entry id behind which to begin on it ('' = at its start),
--          greatest number of entries to look at, and of bytes
-- Returns  {index of the stream to go on with (-1 = all were seen), entry id behind which to go on, flat list of index
--          of a stream and number of entries found there, what Redis said of the first stream that it refused, or ''}
-- Needs    described, pending, refusal_of, size
-- Nothing of ours leaves such an entry: somebody typed XGROUP DELCONSUMER or XACK, or made the group anew at `$`. As
-- `nobody` beats, recovery puts them back; until then whoever runs one has it back by its heartbeat, or by settling it.
-- Between two pending entries that stand side by side there is nothing, so that this reads no entry but those.
local group, begin, behind, left, bytes = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local found, refusal = {}, ''

-- Gathers what stands between two ids; returns how many, and behind which to go on when there was no time for the rest.
local function gather(key, from, to)
    local count = 0
    while true do
        local entry = redis.call('XRANGE', key, from, to, 'COUNT', 1)[1]
        if not entry then return count end
        redis.call('XCLAIM', key, group, 'nobody', 0, entry[1], 'FORCE', 'JUSTID')
        count, left, bytes = count + 1, left - 1, bytes - size(entry[2])
        from = '(' .. entry[1]
        if left <= 0 or bytes <= 0 then return count, entry[1] end
    end
end

-- Looks at one stream; returns the same.
local function look(key, from)
    local summary = pending(key, group)
    if not summary or redis.call('XLEN', key) == summary[1] then return 0 end
    local last
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
        local known = described(flat)
        if known.name == group then last = known['last-delivered-id'] end
    end
    from = from == '' and '-' or '(' .. from
    local count = 0
    while true do
        local page = redis.call('XPENDING', key, group, from, last, 100)
        for _, held in ipairs(page) do
            local more, rest = gather(key, from, '(' .. held[1])
            count, from, left = count + more, '(' .. held[1], left - 1
            if rest or left <= 0 then return count, rest or held[1] end
        end
        if #page < 100 then
            local more, rest = gather(key, from, last)
            return count + more, rest
        end
    end
end

for index = begin + 1, #KEYS do
    local fine, count, rest = pcall(look, KEYS[index], index == begin + 1 and behind or '')
    if not fine then
        if refusal == '' then refusal = refusal_of(count) end
    else
        if count > 0 then
            found[#found + 1] = index - 1
            found[#found + 1] = count
        end
        if rest then return {index - 1, rest, found, refusal} end
    end
    left = left - 1
    if left <= 0 and index < #KEYS then return {index, '', found, refusal} end
end
return {-1, '', found, refusal}
