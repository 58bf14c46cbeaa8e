-- Returns the streams, fronts and marks of a queue, which stand side by side from the given key on, and what releases
-- need besides: see release_lane.
local function queue_of(from, steps, group, limits)
    local queue = {streams = {}, fronts = {}, marks = {}, steps = steps, group = group, limits = limits, targets = {}}
    for step = 1, steps do
        queue.streams[step] = KEYS[from + step - 1]
        queue.fronts[step] = KEYS[from + steps + step - 1]
        queue.marks[step] = KEYS[from + 2 * steps + step - 1]
    end
    return queue
end
