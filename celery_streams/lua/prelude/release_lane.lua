-- Needs    barred, counted, first_of, follow, lane_in, line_up, movable, put_ahead, take_first, take_place, unpacked
-- Moves the first message of a lane to its stream, before what waits there, and takes its place; the rest lines up.
-- Returns what bars the lane and until when: then it is the caller who lines it up; 'E' is an empty one. Else nothing,
-- and the task, if more of it may be released to places that are left.
-- `queue` has what every release of the script shares: the streams, fronts, marks, what entries are told by, targets,
-- the group and the limits that the caller knows of. While what was released before waits for somebody who reads it,
-- nothing more is, but as much as falls due within 50 ms.
local function release_lane(at, queue, lane, now)
    local known = lane_in(redis.call('HGET', at.lanes, lane))
    if not known then return 'E' end
    movable(at, now)
    local told = queue.limits[known.task]
    if told then
        known.interval, known.limit = told.interval or 0, told.limit
        known.key_limit = known.key and told.key_limit or nil -- it was held when the task had no key
    end
    local barrier, till = barred(at, lane, known, now)
    if barrier then return barrier, till end
    local most = math.max(1, 50 / math.max(known.interval, 1))
    if not (known.limit or known.key_limit) and counted(at, 'L' .. lane) >= most then
        return 'R', now + math.min(math.max(known.interval, 100), 1000)
    end
    local field, packed, turn = first_of(at, known)
    if packed then
        local fields, step = unpacked(packed)
        step = math.min(step or 0, queue.steps - 1) + 1
        local front, id = put_ahead(
            queue.targets, queue.streams[step], queue.fronts[step], queue.marks[step], queue.group,
            fields or {'packed', packed}
        )
        if fields then
            follow(fields[2], at.held, field, front and queue.fronts[step] or queue.streams[step], id)
        end
        take_place(at, (front and step - 1 + queue.steps or step - 1) .. ':' .. id, lane, known, now)
    end
    local empty = take_first(at, known, field, turn)
    local full = not (known.limit or known.key_limit) or known.limit and counted(at, 'T' .. known.task) >= known.limit
    local more = not full and known.task or nil
    if empty then
        redis.call('HDEL', at.lanes, lane)
        redis.call('ZREM', at.ready, lane)
        if redis.call('EXISTS', at.held) == 0 then redis.call('UNLINK', at.lanes, at.ready, at.ring) end
        return nil, more
    end
    redis.call('HSET', at.lanes, lane, cjson.encode(known))
    barrier, till = barred(at, lane, known, now)
    if not barrier and (known.limit or known.key_limit) then barrier = 'T' .. known.task end
    if not barrier and known.interval > 0 and lane ~= known.rate then barrier = 'R' .. known.rate end
    line_up(at, lane, barrier or 'R', till or now)
    return nil, more
end
