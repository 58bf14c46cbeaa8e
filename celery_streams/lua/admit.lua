-- Ask whether an entry of a limited task may start; where it may not, move it aside, in the same step.
--
-- KEYS     task stream or front of the entry; what the queue holds back (see prelude/shelf); then its streams, fronts
--          and marks
-- ARGV     group, consumer, entry id, what its place is told by (index of its stream, ':', its id), priority step,
--          lane, its limits (JSON: task, rate, interval in ms, limit, key, key_limit), '1' = it was put back, or has
--          started once, ms for which nothing shall start ('' = none: it may start), number of streams, the id that it
--          was published with, where it was put back ('' = its own), the key that shall not start ('' = its rate)
-- Returns  1: it may start, and has its places; 2: it may start, and has none to give back; -1: it was no longer ours;
--          a text: it was moved aside, to this field of what is held
-- Needs    barred, came, clock, comes_before, fade, first_of, follow, lane_in, leave_place, line_up, make_room, movable
-- Needs    next_turn, numbered, outline, pack, queue_of, settle, shelf, since, split, take_place, take_token, taken
-- Needs    token, vacate
-- What others of its lane wait for it waits for, too: in the order in which they were published, whatever was put back
-- in the meantime. It may start where it comes before all of them.
-- An entry that was released has what it needs, unless nobody read it for so long that its token is stale. A task that
-- is limited no more is told by its missing limits.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local stream, at = KEYS[1], shelf(2)
local group, consumer, id, entry, step, lane = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local wanted, new, penalty = cjson.decode(ARGV[7]), ARGV[8] ~= '1', tonumber(ARGV[9])
local now = clock()
local queue = queue_of(10, tonumber(ARGV[10]), group, {[wanted.task] = wanted})
local lasting = wanted.limit or wanted.key_limit

local place = not penalty and redis.call('HGET', at.places, entry)
if place then
    local fine, taken_for = pcall(cjson.decode, place)
    local since = fine and type(taken_for) == 'table' and tonumber(taken_for[2]) or 0
    if wanted.interval == 0 or now - since <= math.max(wanted.interval, 1000) then
        if lasting then return 1 end
        leave_place(at, entry, place)
        return 2
    end
    vacate(at, queue, entry, now)
    new = false
end
movable(at, now)
local before = lane_in(redis.call('HGET', at.lanes, lane))
local leads = not before
if before and not new and not penalty then
    local _, first = first_of(at, before)
    local _, history = outline(first or '')
    leads = comes_before(came(ARGV[11] ~= '' and ARGV[11] or id), came(history or ''))
end
local barrier, till
if not penalty then
    if leads then barrier, till = barred(at, lane, wanted, now) end
    if leads and not barrier and new and wanted.interval > 0 and lane ~= wanted.rate then
        -- Others wait for the next token, and have not been looked at yet: it is theirs.
        local limit = 'R' .. wanted.rate
        local turn = next_turn(at, limit)
        local ahead = turn and string.sub(turn, #limit + 2, #limit + 2) <= step
        if ahead or redis.call('ZSCORE', at.ready, wanted.rate) then barrier, till = limit, now end
    end
    if leads and not barrier then
        if lasting then
            take_place(at, entry, lane, wanted, now)
            return 1
        end
        take_token(at, wanted, now)
        return 2
    end
end
local fields = taken(stream, group, consumer, id)
if not fields then return -1 end
local _, named, plain = split(fields)
if not plain then return 2 end
local known = wanted
if before then
    known.number, known.first, known.last, known.back = before.number, before.first, before.last, before.back
else
    known.number, known.first, known.last = numbered(at), 1, 0
end
local history = since(named.history, id)
if penalty and not string.find(history, '"started":', 1, true) then
    -- It is no first start that it waits for from now on.
    history = string.gsub(history, '}%s*$', ',"started":1}')
end
local field = make_room(at, known, came(history), new)
redis.call('HSET', at.held, field, pack(tonumber(step), named, history))
follow(named.headers, stream, id, at.held, field)
redis.call('HSET', at.lanes, lane, cjson.encode(known))
settle(stream, group, id)
if penalty then
    fade(at, now, token(at, '!' .. (ARGV[12] ~= '' and ARGV[12] or wanted.rate), now + penalty))
    barrier, till = 'R', now + penalty
end
if not before then line_up(at, lane, barrier, till) end
if penalty then vacate(at, queue, entry, now) end
return field
