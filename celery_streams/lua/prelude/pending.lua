-- XPENDING; nothing when there is no such stream or group, for then nothing is held there.
local function pending(key, group, ...)
    if redis.call('EXISTS', key) == 0 then return nil end
    local reply = redis.pcall('XPENDING', key, group, ...)
    local refusal = reply['err']
    if not refusal then return reply end
    if string.find(refusal, 'NOGROUP', 1, true) or string.find(refusal, 'WRONGTYPE', 1, true) then return nil end
    return redis.call('XPENDING', key, group, ...) -- raises what Redis says: a missing permission is no empty stream
end
