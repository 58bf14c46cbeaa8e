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
-- part of it. In front of the state stand Redis' time and what the verb returned, an id.
-- Nothing may fail for it: the verb has done its part.
local reply = ARGV[#ARGV]
local left_out, count, now = {}, 0, string.format('%.0f', clock())
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

for i, key in ipairs(KEYS) do
    local on, kept, must, state = unpack(ARGV, 4 * i - 3, 4 * i)
    local may = must == '' or must == 'none'
    if not may then
        local known = redis.pcall('GET', key)
        may = fits(type(known) == 'string' and string.match(known, '^[^\n]*'), must)
    end
    if may and applies(on) then
        local id = (on == '' or on == 'held') and type(reply) == 'string' and reply or '-'
        local value = now .. ' ' .. id .. ' ' .. state
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
