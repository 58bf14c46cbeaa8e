-- Store the messages of a block in order, each for itself, and not again what an earlier attempt at the block stored.
--
-- KEYS     mark of the block, delayed, delayed messages, wake, then the task streams of the queue, then, when there is
--          a bound, its fronts and held
-- ARGV     ms for which the mark is kept, what the mark holds (attempt = the outcome of this very block, ids = the
--          messages that were stored), greatest number of messages of the queue (0 = none), then six for each message:
--          its id, due time in ms since the epoch (0 = now), number of its task stream (for later: its member of the
--          delayed set), headers (for later: the packed message), properties, body (for later: both empty)
-- Returns  JSON: [position, reason] of each message that was not stored; empty text: all are. The reason is `full`
--          where the queue is, `duplicate` with the id of the task that holds the lock of a unique one, `waits` where
--          that waits for its time, else what Redis said
-- Needs    clock, holder_of, lock_anew, lock_of, postpone, room, unpacked, wake
-- Of a group nothing is stored when one of its messages in the block is a duplicate.
-- The mark is written first: a Redis that is full, or forbids it, refuses the whole block before anything is stored.
local mark, delayed, messages, woken = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local kept, by_ids, bound = ARGV[1], ARGV[2] == 'ids', tonumber(ARGV[3])

local before = not by_ids and redis.call('GET', mark)
if before then return before end
-- Whatever may be refused comes before the mark, or before the first message: a mark alone says that they are stored.
local space = bound > 0 and room(bound, delayed, 5) or math.huge
if by_ids then
    redis.call('HSET', mark, '', '')
    redis.call('PEXPIRE', mark, kept)
    redis.call('HDEL', mark, '\0')
else
    redis.call('SET', mark, '', 'PX', kept)
end

-- Returns what Redis said when it refused, or nothing.
local function refused(reply)
    return type(reply) == 'table' and reply['err'] or nil
end

-- Returns what Redis said when it refused, or nothing; and what the message is called where it is.
local function store(due, place, headers, properties, body)
    if due == 0 then
        local id = redis.pcall('XADD', KEYS[4 + tonumber(place)], '*',
            'headers', headers, 'properties', properties, 'body', body)
        return refused(id), id
    end
    local fine, said = pcall(postpone, delayed, messages, place, due, headers)
    if not fine then return refused(said) or tostring(said) end
    return nil, place
end

-- Returns the headers of a message that may be unique; nothing for all others.
local function unique(at)
    local headers = ARGV[at + 3]
    if not string.find(headers, '"streams_unique":', 1, true) then return nil end
    if tonumber(ARGV[at + 1]) == 0 then return headers end
    local fields = unpacked(headers)
    return fields and fields[2]
end

-- The tasks that hold the locks which messages name, and those that hold up a group.
local base, now, holders, groups = string.match(delayed, '^(.*})'), nil, {}, {}
for at = 4, #ARGV, 6 do
    local headers = unique(at)
    local lock = lock_of(headers)
    if lock then
        now = now or clock()
        local known = holders[lock] or (holder_of(base, lock, now) or {}).id
        local group = string.match(headers, '"group":"([^"]*)"')
        if known and group and not (by_ids and redis.call('HGET', mark, ARGV[at])) then
            groups[group] = groups[group] or known
        end
        holders[lock] = known or ARGV[at]
    end
end

-- Returns the reason that keeps a message from being stored, or nothing; and its headers, when it is unique.
local function keeps(at)
    local group = next(groups) and string.match(ARGV[at + 3], '"group":"([^"]*)"')
    if group and groups[group] then return 'duplicate ' .. groups[group] end
    local headers = unique(at)
    local lock = lock_of(headers)
    if not lock then return nil end
    local known = holder_of(base, lock, now)
    if not known then return nil, headers end
    return ((known.at == ':delayed' or known.at == ':held') and 'waits ' or 'duplicate ') .. known.id
end

local left, first, member = {}, math.huge, nil
for at = 4, #ARGV, 6 do
    local id, due, place = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
    if not by_ids or redis.call('HSET', mark, id, '') == 1 then
        local kept_by, headers
        if now then kept_by, headers = keeps(at) end
        local said, name = kept_by or space <= 0 and 'full', place
        if not said then
            said, name = store(due, place, ARGV[at + 3], ARGV[at + 4], ARGV[at + 5])
        end
        if not said and headers then
            lock_anew(headers, due > 0 and delayed or KEYS[4 + tonumber(place)], name, now)
        end
        if said then
            left[#left + 1] = {(at - 4) / 6, said}
            if by_ids then redis.call('HDEL', mark, id) end
        else
            space = space - 1
            if due > 0 and due < first then first, member = due, place end
        end
    end
end

-- Without being told, promoters look by themselves after a while; so nothing may fail for it.
if member then wake(delayed, woken, member, first) end
local outcome = #left > 0 and cjson.encode(left) or ''
if not by_ids and outcome ~= '' then redis.call('SET', mark, outcome, 'PX', kept) end
return outcome
