-- Tells whether one message goes before another one of its lane, both told by `came`; no where nobody knows of either.
local function comes_before(one, other)
    if not one or not other then return false end
    if one[1] ~= other[1] then return one[1] < other[1] end
    return one[2] < other[2]
end
