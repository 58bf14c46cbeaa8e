-- Returns the lock of a unique message, which its headers name; for how many ms it lasts (nil = as long as the message
-- is there); and whether it ends when the task starts. Nothing for all other messages.
local function lock_of(headers)
    if not headers or not string.find(headers, '"streams_unique":', 1, true) then return nil end
    local lock, lasts, kind = string.match(headers, '"streams_unique":"(%x+):(%d*):(%a*)"')
    return lock, tonumber(lasts), kind == 'start'
end
