-- Returns a history that says with which id its message came, where it does not say so yet.
-- Its text is added to, and not written anew: numbers in it would lose digits.
local function since(history, id)
    if not history then return cjson.encode({first = id}) end
    if string.sub(history, 1, 1) ~= '{' or string.find(history, '"first":', 1, true) then return history end
    local rest = string.sub(history, 2)
    return '{"first":"' .. id .. '"' .. (string.find(rest, '^%s*}') and '' or ',') .. rest
end
