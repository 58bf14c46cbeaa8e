-- Returns the bytes that an entry's fields hold.
local function size(fields)
    local bytes = 0
    for _, value in ipairs(fields) do bytes = bytes + #value end
    return bytes
end
