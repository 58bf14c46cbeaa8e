-- What Redis gives a script, and the functions of lua/prelude that are put in front of it.
std = "lua51"
max_line_length = 120
files["celery_streams/lua"].read_globals = {
    "KEYS", "ARGV", "redis", "cjson", "struct",
    "barred", "clock", "counted", "described", "each_queue", "follow", "forgettable", "held_lock", "holder_of", "lane_in",
    "leave_place", "line_up", "lock_anew", "lock_of", "movable", "names", "numbered", "open_full", "owned", "pack", "pending",
    "postpone", "put_ahead", "queue_of", "refusal_of", "release_lane", "release_next", "room", "settle", "settleable",
    "shelf", "since", "size", "split", "storable", "succeed", "take_lock", "take_place", "taken", "unlock", "unpacked", "vacate", "wake",
}
-- A file of the prelude is one function, for others.
files["celery_streams/lua/prelude"].ignore = {"211", "431"}
