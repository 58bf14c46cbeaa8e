-- Returns what the field of a lane says, or nothing where it is none: anybody can write there.
local function lane_in(said)
    local fine, known = pcall(cjson.decode, said or '')
    if not fine or type(known) ~= 'table' then return nil end
    for _, name in ipairs({'number', 'first', 'last', 'interval'}) do
        local value = known[name]
        local exact = type(value) == 'number' and math.abs(value) < 2 ^ 53
        if not exact then return nil end
    end
    local limit, key_limit, back = known.limit or 0, known.key_limit or 0, known.back or 1
    if type(limit) ~= 'number' or type(key_limit) ~= 'number' or type(back) ~= 'number' then return nil end
    if type(known.task) ~= 'string' or type(known.rate) ~= 'string' then return nil end
    if known.key_limit and type(known.key) ~= 'string' then return nil end
    return known
end
