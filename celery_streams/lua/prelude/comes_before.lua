-- Tells whether one message goes before another one of its lane, both told by `came`; no where nobody knows of either.
-- Of several priorities they stand as they were read: a `new` one comes behind all of another step.
local function comes_before(one, other, new)
    if not one or not other then return false end
    if one[1] ~= other[1] then return not new and one[1] < other[1] end
    if one[2] ~= other[2] then return one[2] < other[2] end
    return one[3] < other[3]
end
