-- Returns by name the keys of what a queue holds back; they stand side by side, from the given one on.
-- `held`: LANE NUMBER:POSITION -> packed message. `lanes`: lane -> JSON of what it is and holds; '' -> last number.
-- `ready`: lane, or \255 and a rate that lanes share -> when it is looked at (ms). `ring`: LIMIT, NUL, turn, NUL, lane;
-- a turn begins with the priority step; and turns inside a lane (see make_room). `rates`: rate -> when its next token
-- is there (ms); behind '!' a rate or key: until when nothing of it starts. `places`: entry -> JSON of what was taken
-- for it. `running`: LIMIT, NUL, entry. `tokens` and `counts` are what the script knows already.
local function shelf(from)
    return {
        held = KEYS[from], lanes = KEYS[from + 1], ready = KEYS[from + 2], ring = KEYS[from + 3],
        rates = KEYS[from + 4], places = KEYS[from + 5], running = KEYS[from + 6], wake = KEYS[from + 7],
        tokens = {}, counts = {},
    }
end
