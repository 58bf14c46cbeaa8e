-- Needs    refusal_of
-- Has `write` do its work for each queue, whose keys stand side by side: it is given where they begin, and returns how
-- many it wrote. A queue that is refused ends it for no other.
-- Returns {written in all, what Redis said of the first queue that it refused, or ''}.
local function each_queue(width, write)
    local written, refusal = 0, ''
    for base = 1, #KEYS, width do
        local fine, said = pcall(write, base)
        if fine then
            written = written + said
        elseif refusal == '' then
            refusal = refusal_of(said)
        end
    end
    return {written, refusal}
end
