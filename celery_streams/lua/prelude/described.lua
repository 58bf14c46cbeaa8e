-- Returns what XINFO says, a flat list of names and values, by name.
local function described(flat)
    local known = {}
    for i = 1, #flat, 2 do known[flat[i]] = flat[i + 1] end
    return known
end
