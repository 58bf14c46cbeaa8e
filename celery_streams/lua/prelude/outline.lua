-- Returns the headers and the history of a packed message, but not its body; nothing if it is none.
local function outline(packed)
    local whole, _, h, p, b, y, at = pcall(struct.unpack, '>I4I4I4I4I4', packed)
    if not whole or #packed ~= at - 1 + h + p + b + y then return nil end
    return string.sub(packed, at, at + h - 1), string.sub(packed, at + h + p + b)
end
