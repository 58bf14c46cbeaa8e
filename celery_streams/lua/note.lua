-- Note the states of tracked tasks, behind the verb that changed them and in the same step.
--
-- KEYS     states of tasks
-- ARGV     four for each key: on which reply of the verb it is noted, ms for which it is kept, what the state must be
--          so far, the state; then the reply of the verb
-- Returns  number of states noted
-- Needs    clock
-- On which reply: '' = the verb did something; 'held', 'admitted' = as `admit` says; 'stored' = as `publish_unique`
-- says; a number = the verb, `ack` or
-- `publish_block`, does not name this position. What the state must be: '' = anything; 'none' = there is none yet;
-- '!PART' = any without this part; '<ID PART' = none of an entry with this id or a later one that has this part; else a
-- part of it. Behind '~MS ' it comes so many ms late, and gives way to what was noted since, to a later entry of the
-- queue, and to what became of this one. In front of the state stand Redis' time and what the verb returned, an id.
-- Nothing may fail for it: the verb has done its part.
local reply = ARGV[#ARGV]
local left_out, count, now = {}, 0, clock()
local listed = reply
if type(reply) == 'string' and string.sub(reply, 1, 2) == '[[' then listed = cjson.decode(reply) end
if type(listed) == 'table' then
    for _, one in ipairs(listed) do left_out[type(one) == 'table' and one[1] or one] = true end
end

local function applies(on)
    if on == 'held' then return type(reply) == 'string' end
    if on == 'admitted' then return reply == 1 or reply == 2 end
    if on == 'stored' then return reply[1] == 1 end
    if on ~= '' then return not left_out[tonumber(on)] end
    return reply and reply ~= 0
end

-- Returns whether a state may take the place of what is known, if anything is.
local function fits(known, must)
    local ms, number, part = string.match(must, '^<(%d+)-(%d+) (.*)$')
    if not ms and string.sub(must, 1, 1) == '!' then part = string.sub(must, 2) end
    if not part then return known and string.find(known, must, 1, true) end
    if not known or not string.find(known, part, 1, true) then return true end
    if not ms then return false end
    local its_ms, its_number = string.match(known, '"e":"(%d+)-(%d+)"')
    if not its_ms then return true end
    ms, its_ms = tonumber(ms), tonumber(its_ms)
    return its_ms < ms or its_ms == ms and tonumber(its_number) < tonumber(number)
end

-- Returns what the first line of a value says: when it was noted, its queue, its entry, and how far that one is: it was
-- stored, it runs, something became of it.
local function place(line)
    local noted_at, id, said = string.match(line, '^(%d+) (%S+) (.*)$')
    if not said then return 0 end
    local ms, number = string.match(said, '"e":"(%d+)-(%d+)"')
    local far = not ms and 0 or string.find(said, '"s":"running"', 1, true) and 1 or 2
    if not ms then ms, number = string.match(id, '^(%d+)-(%d+)$') end
    return tonumber(noted_at), string.match(said, '"q":".-"'), tonumber(ms), tonumber(number), far
end

-- Returns whether what comes late takes the place of what is known.
local function follows(late, known)
    if not known then return true end
    local at, queue, ms, number, far = place(late)
    local its_at, its_queue, its_ms, its_number, its_far = place(known)
    if queue ~= its_queue or not ms or not its_ms then return its_at <= at end
    if ms ~= its_ms then return its_ms < ms end
    if number ~= its_number then return its_number < number end
    return its_far < far
end

for i, key in ipairs(KEYS) do
    local on, kept, must, state = unpack(ARGV, 4 * i - 3, 4 * i)
    local ago, rest = string.match(must, '^~(%d+) (.*)$')
    must = rest or must
    local id = (on == '' or on == 'held') and type(reply) == 'string' and reply or '-'
    local value = string.format('%.0f', now - (tonumber(ago) or 0)) .. ' ' .. id .. ' ' .. state
    local may = must == '' or must == 'none'
    if not may or ago then
        local known = redis.pcall('GET', key)
        known = type(known) == 'string' and string.match(known, '^[^\n]*')
        may = (may or fits(known, must)) and (not ago or follows(string.match(value, '^[^\n]*'), known))
    end
    if may and applies(on) then
        local done
        if must == 'none' then
            done = redis.pcall('SET', key, value, 'PX', kept, 'NX')
        else
            done = redis.pcall('SET', key, value, 'PX', kept)
        end
        if done and not done['err'] then count = count + 1 end
    end
end
return count
