-- Read from the tail of a list, without taking anything, no more than a step may carry.
--
-- KEYS     list
-- ARGV     greatest number of elements, and of bytes
-- Returns  elements, the last of the list first
-- The element that goes beyond the bytes is there still, so that one that is larger than all that can be moved too.
local list, most, bytes = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local found = {}
for i = 1, most do
    local element = bytes > 0 and redis.call('LINDEX', list, -i)
    if not element then break end
    found[i] = element
    bytes = bytes - #element
end
return found
