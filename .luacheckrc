-- What Redis gives a script, and the functions of lua/prelude that are put in front of it.
std = "lua51"
max_line_length = 120
files["celery_streams/lua"].read_globals = {
    "KEYS", "ARGV", "redis", "cjson", "struct",
    "barred", "came", "carry_place", "clock", "comes_before", "counted", "described", "each_queue", "fade", "first_of", "follow", "forgettable",
    "held_lock", "holder_of", "holds_places", "lane_in", "leave_place", "line_up", "lock_anew", "lock_of", "make_room",
    "movable", "names", "next_turn", "numbered", "open_full", "outline", "owned", "pack", "pending", "postpone", "put_ahead", "queue_of",
    "quit_place", "refusal_of", "release_lane", "release_next", "release_turn", "room", "settle", "settleable", "shelf", "since", "size", "split",
    "storable", "succeed", "take_first", "take_lock", "take_place", "take_token", "taken", "token", "unlock", "unpacked", "unstarted", "vacate",
    "wake",
}
-- A file of the prelude is one function, for others.
files["celery_streams/lua/prelude"].ignore = {"211", "431"}
