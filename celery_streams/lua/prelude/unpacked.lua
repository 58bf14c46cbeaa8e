-- Returns the fields of the entry that a packed message becomes, and its priority step; nothing when it is none.
local function unpacked(packed)
    local whole, step, h, p, b, y, at = pcall(struct.unpack, '>I4I4I4I4I4', packed)
    if not whole or #packed ~= at - 1 + h + p + b + y then return nil end
    local fields = {
        'headers', string.sub(packed, at, at + h - 1),
        'properties', string.sub(packed, at + h, at + h + p - 1),
        'body', string.sub(packed, at + h + p, at + h + p + b - 1),
    }
    if y > 0 then
        fields[7], fields[8] = 'history', string.sub(packed, at + h + p + b)
    end
    return fields, step
end
