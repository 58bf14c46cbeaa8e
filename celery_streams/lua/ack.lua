-- Acknowledge and delete entries that are done.
--
-- KEYS     task streams, each once
-- ARGV     group, consumer, then for each stream the ids of its entries, with a space between
-- Returns  positions (from 0, over all streams) of the ids whose entry was no longer ours; ids alone are not unique
-- An entry that another consumer holds is left alone; one that is there and that nobody holds (see `gather`) ran here.
-- On a stream without the group nothing is ours; it hides nothing of the others.
-- Raises   what else Redis says, with nothing acknowledged: a missing permission does not mean that it is not ours
local group, consumer = ARGV[1], ARGV[2]
local lost, ours, asked = {}, {}, 0
for i, key in ipairs(KEYS) do
    local ids, held = {}, {}
    for id in string.gmatch(ARGV[i + 2], '%S+') do ids[#ids + 1] = id end
    -- What of the ids from one to another is pending for us, `most` entries of it; nil without the group.
    local function look(from, to, most)
        local reply = redis.pcall('XPENDING', key, group, from, to, most, consumer)
        local said = reply['err']
        if said then
            if string.find(said, 'NOGROUP', 1, true) or string.find(said, 'WRONGTYPE', 1, true) then return nil end
            return redis.call('XPENDING', key, group, from, to, most, consumer) -- once more, to raise: it says where
        end
        for _, entry in ipairs(reply) do held[entry[1]] = true end
        return true
    end
    local function missing()
        local left = {}
        for _, id in ipairs(ids) do
            if not held[id] then left[#left + 1] = id end
        end
        return left
    end
    -- One look for all of them, for they are mostly in order, with little else of ours in between.
    local there = look(ids[1], ids[#ids], #ids + 50)
    if there and #ids > 1 then
        local left = missing()
        if #left > 1 then
            -- Not in order. Numbers of 64 bits are not exact here, so what is found nowhere is asked about below.
            local low, high = left[1], left[1]
            local low_ms, low_seq = string.match(low, '^(%d+)-(%d+)$')
            low_ms, low_seq = tonumber(low_ms), tonumber(low_seq)
            local high_ms, high_seq = low_ms, low_seq
            for _, id in ipairs(left) do
                local ms, seq = string.match(id, '^(%d+)-(%d+)$')
                ms, seq = tonumber(ms), tonumber(seq)
                if ms < low_ms or (ms == low_ms and seq < low_seq) then low, low_ms, low_seq = id, ms, seq end
                if ms > high_ms or (ms == high_ms and seq > high_seq) then high, high_ms, high_seq = id, ms, seq end
            end
            look(low, high, #ids + 50)
            left = missing()
        end
        for _, id in ipairs(left) do look(id, id, 1) end
    end
    for _, id in ipairs(there and missing() or {}) do
        local other = redis.call('XPENDING', key, group, id, id, 1)
        if #other == 0 or other[1][2] == 'nobody' then held[id] = #redis.call('XRANGE', key, id, id) == 1 end
    end
    local mine, taken = {}, {}
    for n, id in ipairs(ids) do
        if held[id] and not taken[id] then
            taken[id] = true
            mine[#mine + 1] = id
        else
            lost[#lost + 1] = asked + n - 1
        end
    end
    asked = asked + #ids
    ours[i] = mine
end
-- One call for many entries costs less than one for each; Lua passes no more than some thousand arguments.
-- Acknowledged first: what is deleted and still pending would look like work that somebody else deleted. What could not
-- be deleted is pending again, for it would be nobody's.
for i, key in ipairs(KEYS) do
    local ids = ours[i]
    for from = 1, #ids, 500 do
        local to = math.min(from + 499, #ids)
        redis.call('XACK', key, group, unpack(ids, from, to))
        local reply = redis.pcall('XDEL', key, unpack(ids, from, to))
        if type(reply) == 'table' and reply['err'] then
            for n = from, to do redis.call('XCLAIM', key, group, consumer, 0, ids[n], 'FORCE', 'JUSTID') end
            redis.call('XDEL', key, unpack(ids, from, to)) -- once more, to raise: it says where
        end
    end
end
return lost
