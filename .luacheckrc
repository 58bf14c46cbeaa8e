-- What Redis gives a script, and the functions of lua/prelude that are put in front of it.
std = "lua51"
max_line_length = 120
files["celery_streams/lua"].read_globals = {
    "KEYS", "ARGV", "redis", "cjson", "struct",
    "clock", "described", "open_full", "owned", "pack", "pending", "postpone", "put_ahead", "settle", "size", "split",
    "storable", "unpacked", "wake",
}
-- A file of the prelude is one function, for others.
files["celery_streams/lua/prelude"].ignore = {"211", "431"}
