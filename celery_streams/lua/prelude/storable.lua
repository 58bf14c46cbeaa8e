-- Returns the fields of an entry as a script can store them: Lua passes on some thousand values and no more, so more
-- than that become one value, each behind its length. A worker dead-letters such an entry; `message.unpack_fields`
-- undoes it.
local function storable(fields)
    if #fields <= 4000 then return fields end
    local parts = {}
    for i, value in ipairs(fields) do parts[i] = struct.pack('>I4', #value) .. value end
    return {'fields', table.concat(parts)}
end
