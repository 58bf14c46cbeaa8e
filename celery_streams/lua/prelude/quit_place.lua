-- Needs    clock, holds_places, vacate
-- Gives back the places of an entry that has just gone, if it had any, and releases who waited for them.
-- Nothing may fail for it: the entry is gone already. Workers look for the places of what is gone, too.
local function quit_place(at, queue, entry)
    if holds_places(at) then pcall(vacate, at, queue, entry, clock()) end
end
