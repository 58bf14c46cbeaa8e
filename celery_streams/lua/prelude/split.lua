-- Returns the fields of an entry without its history; all fields by name; and whether they are those of a message.
local function split(fields)
    local kept, named = {}, {}
    for i = 1, #fields, 2 do
        named[fields[i]] = fields[i + 1]
        if fields[i] ~= 'history' then
            kept[#kept + 1] = fields[i]
            kept[#kept + 1] = fields[i + 1]
        end
    end
    return kept, named, #kept == 6 and named.headers and named.properties and named.body and true
end
