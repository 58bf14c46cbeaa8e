-- Ask whether an entry of a limited task may start; where it may not, move it aside, in the same step.
--
-- KEYS     task stream or front of the entry; what the queue holds back (see prelude/shelf); then its streams, fronts
--          and marks
-- ARGV     group, consumer, entry id, what its place is told by (index of its stream, ':', its id), priority step,
--          lane, its limits (JSON: task, rate, interval in ms, limit, key, key_limit), '1' = ahead of its lane,
--          ms for which nothing of its rate shall start ('' = none: it may start), number of streams, the id with which
--          it was published, where it was put back ('' = not known)
-- Returns  1: it may start, and has its places; 2: it may start, and has none to give back; -1: it was no longer ours;
--          a text: it was moved aside, to this field of what is held
-- Needs    barred, clock, follow, lane_in, leave_place, line_up, movable, numbered, open_full, pack, queue_of, settle
-- Needs    shelf, since, split, take_place, taken, unpacked, vacate
-- What others of its lane wait for it waits for, too, behind them; also what was put back before it ever waited there.
-- An entry that was released has what it needs, unless nobody read it for so long that its token is stale. A task that
-- is limited no more is told by its missing limits.
-- Stored first, acknowledged then: a store that is refused (a key of another type, a missing permission) loses nothing.
local stream, at = KEYS[1], shelf(2)
local group, consumer, id, entry, step, lane = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local wanted, ahead, penalty = cjson.decode(ARGV[7]), ARGV[8] == '1', tonumber(ARGV[9])
local now = clock()
local queue = queue_of(10, tonumber(ARGV[10]), group, {[wanted.task] = wanted})
local lasting = wanted.limit or wanted.key_limit
open_full(at.rates)
movable(at)

local place = not penalty and redis.call('HGET', at.places, entry)
if place then
    local fine, taken_for = pcall(cjson.decode, place)
    local since = fine and type(taken_for) == 'table' and tonumber(taken_for[2]) or 0
    if wanted.interval == 0 or now - since <= math.max(wanted.interval, 1000) then
        if lasting then return 1 end
        leave_place(at, entry)
        return 2
    end
    vacate(at, queue, entry, now)
    ahead = true
end
local before = lane_in(redis.call('HGET', at.lanes, lane))

-- Returns whether all that waits in its lane was published earlier.
local function is_behind(ms, seq)
    local last = redis.call('HGET', at.held, string.format('%.0f:%.0f', before.number, before.last))
    local fields = last and unpacked(last)
    local fine, history = pcall(cjson.decode, fields and fields[8] or '')
    local first = fine and type(history) == 'table' and tostring(history.first) or ''
    local last_ms, last_seq = string.match(first, '^(%d+)-(%d+)$')
    if not ms or not last_ms then return false end
    if ms ~= last_ms then return tonumber(last_ms) < tonumber(ms) end
    return tonumber(last_seq) < tonumber(seq)
end

if ahead and not place and not penalty and before then
    ahead = not is_behind(string.match(ARGV[11], '^(%d+)-(%d+)$'))
end
local barrier, till
if not penalty then
    if ahead or not before then barrier, till = barred(at, wanted, now) end
    if not barrier and (ahead or not before) then
        take_place(at, entry, lane, wanted, now)
        if lasting then return 1 end
        leave_place(at, entry)
        return 2
    end
end
local fields = taken(stream, group, consumer, id)
if not fields then return -1 end
local _, named, plain = split(fields)
if not plain then return 2 end
local known = wanted
if before then
    known.number, known.first, known.last = before.number, before.first, before.last
else
    known.number, known.first, known.last = numbered(at), 1, 0
end
local position
if ahead then
    known.first = known.first - 1
    position = known.first
else
    known.last = known.last + 1
    position = known.last
end
local history = since(named.history, id)
local field = string.format('%.0f:%.0f', known.number, position)
redis.call('HSET', at.held, field, pack(tonumber(step), named, history))
follow(named.headers, stream, id, at.held, field)
redis.call('HSET', at.lanes, lane, cjson.encode(known))
settle(stream, group, id)
if penalty then
    redis.call('ZADD', at.rates, now + penalty, '!' .. wanted.rate)
    barrier, till = 'R', now + penalty
end
if not before then line_up(at, lane, barrier, till) end
if penalty then vacate(at, queue, entry, now) end
return field
