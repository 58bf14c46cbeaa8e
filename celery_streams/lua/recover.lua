-- Put back what a dead consumer held, before what waits: entries that were idle for as long as their holder may be.
--
-- KEYS     delayed, delayed messages, wake, claims, then the task streams of the queue by priority step, then their
--          fronts, then their marks, then what the queue holds back (see prelude/shelf)
-- ARGV     group, our consumer, least idle time in ms of all, greatest number of entries, and of their bytes, length of
--          a turn in ms, pauses in ms after 1, 2 ... crashes, what Redis' clock should say ('' = nobody knows) and
--          by how many ms it may be wrong, whether each holder has a time of its own ('' = no), then pairs in one word,
--          a NUL behind each part: consumer, least idle time in ms of what it holds ('' = leave it alone); limits that
--          the caller knows of (JSON: task -> interval in ms, limit, key_limit)
-- Returns  {entries put back, entries that had been deleted by someone else, exhausted, 1 when there may be more,
--          Redis' time in ms since the epoch, holders that no pair names, what Redis said of the first entry that it
--          refused, or ''}; exhausted is a list of {index of the stream or front, entry id, fields, consumer}: these
--          are now pending for our consumer, which must dead-letter them
-- Needs    carry_place, clock, follow, open_full, pack, pending, postpone, put_ahead, queue_of, quit_place, refusal_of
-- Needs    settle, shelf, size, split, storable, wake
-- One claimer looks in each turn, however many workers there are; a turn in which it found as many as it may put back
-- is given up, so that the rest need not wait for the next one. The crash is counted in `history`; the first
-- re-delivery is at once, the next ones wait 1, 2, 4 ... seconds from the last heartbeat, which was just before the
-- crash; its worker was silent since, and that is noted among the attempts of the message, as `attempts.and_this` does.
-- An entry that is not a message does not wait: the delayed set keeps messages only. What was handed over to a
-- worker that died was not started: it goes back as it is, with the places that it has; those of all others are free.
-- What nobody held (see `gather`) goes back at once, with no crash counted: no process died with it.
-- A stream without the group holds nothing that could be recovered.
-- What a holder that no pair names holds is left alone, and the turn given up: the caller asks again, with its pair.
-- When the clock was set, nobody knows how long anything was idle: then nothing is done.
-- The entry that goes beyond the bytes is put back still, so that one that is larger than all that comes back too.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
-- What is refused stays pending, and ends the step for no other entry.
local delayed, messages, woken, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, consumer, idle, left, bytes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local turn, pauses = ARGV[6], cjson.decode(ARGV[7])
local now, expected = clock(), tonumber(ARGV[8])
if expected and math.abs(now - expected) > tonumber(ARGV[9]) then return {0, 0, {}, 0, now, {}, ''} end
local patience = {}
for name, ms in string.gmatch(ARGV[11], '(%Z*)%z(%Z*)%z') do patience[name] = tonumber(ms) or math.huge end
local everybody = ARGV[10] == '' and tonumber(idle)
local steps = (#KEYS - 12) / 3
local at, queue = shelf(5 + 3 * steps), queue_of(5, steps, group, cjson.decode(ARGV[12]))
local streams = {}
for i = 5, 4 + 2 * steps do
    local summary = pending(KEYS[i], group)
    if summary and summary[1] > 0 then streams[#streams + 1] = i end
end
if #streams == 0 then return {0, 0, {}, 0, now, {}, ''} end
open_full(delayed)
-- The turn says how long it is, for one that lasts longer was taken before the clock was set back; one that does not
-- end, or is no text, somebody wrote by hand.
if not redis.call('SET', claims, turn, 'NX', 'PX', turn) then
    local taken, lasts = redis.pcall('GET', claims), redis.call('PTTL', claims)
    if type(taken) == 'string' and lasts >= 0 and lasts <= (tonumber(taken) or math.huge) then
        return {0, 0, {}, 0, now, {}, ''}
    end
    redis.call('SET', claims, turn, 'PX', turn)
end
local moved, vanished, exhausted = 0, 0, {}
local strangers, refusal, refused_bytes = {}, '', 10 * bytes

-- Returns what of a history makes sense, as `message.decode_history` does: no script may end for what somebody wrote.
local function sane(known)
    local past = {}
    local fine, found = pcall(cjson.decode, known or '{}')
    if not fine or type(found) ~= 'table' then return past end
    for name, value in pairs(found) do
        local finite = type(value) == 'number' and value == value and math.abs(value) ~= math.huge
        if type(name) == 'string' and (finite or type(value) == 'string' or type(value) == 'boolean') then
            past[name] = value
        end
    end
    if type(past.crashes) ~= 'number' or past.crashes < 0 then past.crashes = 0 end
    return past
end

-- Returns the attempts of a message with one more, that ended with its worker; the oldest of too many are forgotten.
local function lost(known, least, holder, ended)
    local lines, total = {}, 0
    for line in string.gmatch(type(known) == 'string' and known or '', '[^\n]+') do lines[#lines + 1] = line end
    local last = string.match(lines[#lines] or '', '^(%d+)\t')
    local number = math.max(last and #last < 10 and tonumber(last) + 1 or 1, least)
    local who = #holder <= 480 and string.gsub(holder, '%c+', ' ') or ''
    lines[#lines + 1] = string.format('%.0f\t\t%.0f\tlost\t%s\t', math.min(number, 999999999), ended, who)
    local from = #lines + 1
    while from > 1 and from > #lines - 14 and total + #lines[from - 1] + 1 <= 2000 do
        from = from - 1
        total = total + #lines[from] + 1
    end
    return table.concat(lines, '\n', from)
end

-- Returns the history of an entry with one crash more.
local function crashed(id, known, holder, silent)
    local past = sane(known)
    if type(past.first) ~= 'string' then past.first = id end
    past.crashes = math.floor(past.crashes or 0) + 1
    past.redelivered = 1
    past.worker = holder
    past.attempts = lost(past.attempts, past.crashes, holder, math.max(now - silent, 0))
    return past
end

local function recover(i, id, fields, holder, silent)
    local key, step = KEYS[i], (i - 5) % steps
    local stream, front, mark = queue.streams[step + 1], queue.fronts[step + 1], queue.marks[step + 1]
    local kept, named, plain = split(fields)
    local entry = (i - 5) .. ':' .. id
    local function ahead(copied)
        local to_front, copy = put_ahead(queue.targets, stream, front, mark, group, copied)
        follow(named.headers, key, id, to_front and front or stream, copy)
        settle(key, group, id)
        moved = moved + 1
        return (to_front and steps + step or step) .. ':' .. copy
    end
    if string.sub(holder, -7) == '.handed' then return carry_place(at, entry, ahead(storable(fields))) end
    local function again(past)
        kept = storable(kept)
        kept[#kept + 1] = 'history'
        kept[#kept + 1] = cjson.encode(past)
        ahead(kept)
        quit_place(at, queue, entry)
    end
    if holder == 'nobody' then
        local past = sane(named.history)
        if type(past.first) ~= 'string' then past.first = id end
        past.redelivered = 1
        return again(past)
    end
    local past = crashed(id, named.history, holder, silent)
    if past.crashes > #pauses then
        redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
        exhausted[#exhausted + 1] = {i - 5, id, fields, holder}
        return quit_place(at, queue, entry)
    end
    local pause = pauses[past.crashes] - silent
    if not plain or pause <= 0 then return again(past) end
    local due = now + pause
    -- Entry ids are unique within one stream only.
    local member = past.first .. ':crash:' .. past.crashes .. ':' .. (i - 5) .. ':' .. id
    postpone(delayed, messages, member, due, pack(step, named, cjson.encode(past)))
    follow(named.headers, key, id, delayed, member)
    settle(key, group, id)
    moved = moved + 1
    wake(delayed, woken, member, due)
    quit_place(at, queue, entry)
end

-- Keeps the first thing that Redis said.
local function note(said)
    if refusal == '' then refusal = refusal_of(said) end
end

-- Tells whether Redis lets this script settle entries of the stream: what was stored and could not be settled would be
-- stored again at each look.
local function settles(key)
    local acknowledged, deleted = redis.pcall('XACK', key, group, '0-0'), redis.pcall('XDEL', key, '0-0')
    local said = type(acknowledged) == 'table' and acknowledged or type(deleted) == 'table' and deleted or nil
    if said then note(said) end
    return not said
end

-- Recovers an entry; returns whether Redis did not refuse.
local function tried(...)
    local fine, said = pcall(recover, ...)
    if not fine then note(said) end
    return fine
end

-- Puts back what stands on one stream; those whose holders have more time are passed over.
local function look(i)
    local key, from = KEYS[i], '-'
    for _ = 1, 20 do
        local page = redis.call('XPENDING', key, group, 'IDLE', idle, from, '+', 250)
        for _, held in ipairs(page) do
            local id, holder = held[1], held[2]
            from = '(' .. id
            local least = patience[holder] or everybody
            if not least then
                strangers[#strangers + 1] = holder
                patience[holder] = math.huge
            elseif held[3] >= least then
                local entry = redis.call('XRANGE', key, id, id)[1]
                if not entry then
                    redis.call('XACK', key, group, id)
                    quit_place(at, queue, (i - 5) .. ':' .. id)
                    vanished, left = vanished + 1, left - 1
                elseif tried(i, id, entry[2], holder, held[3]) then
                    left, bytes = left - 1, bytes - size(entry[2])
                else
                    refused_bytes = refused_bytes - size(entry[2])
                end
                if left <= 0 or bytes <= 0 or refused_bytes <= 0 then return end
            end
        end
        if #page < 250 then return end
    end
end

for _, i in ipairs(streams) do
    if left > 0 and bytes > 0 and refused_bytes > 0 and settles(KEYS[i]) then look(i) end
end
local more = left <= 0 or bytes <= 0
-- The turn ends by itself; nothing may fail for it, for what is exhausted is ours now.
if more or #strangers > 0 then redis.pcall('UNLINK', claims) end
return {moved, vanished, exhausted, more and 1 or 0, now, strangers, refusal}
