-- Returns what Redis said when it refused, of what `redis.pcall` returned or `pcall` caught. From Redis 7 on it says
-- where, as an error that is raised does.
local function refusal_of(said)
    if type(said) ~= 'table' then return tostring(said) end
    return tostring(said['err']) .. (said['line'] and ', on @user_script:' .. said['line'] or '')
end
