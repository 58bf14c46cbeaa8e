-- Needs    lock_of
-- Tells whether the headers of a message are those of the task that a lock says. Where it says the message is there may
-- be another one by now: fields of what is held back are named anew once nothing is held.
local function names(headers, lock, known)
    local id = known.id
    if type(id) ~= 'string' or lock_of(headers) ~= lock then return false end
    -- What JSON may write in several ways is not compared.
    return string.match(id, '[^%w._-]') ~= nil or string.find(headers, '"id":"' .. id .. '"', 1, true) ~= nil
end
