-- Tells whether any entry of a queue has a place: asked once in a script, for hardly ever one has.
local function holds_places(at)
    if at.holds == nil then at.holds = redis.pcall('EXISTS', at.places) == 1 end
    return at.holds
end
