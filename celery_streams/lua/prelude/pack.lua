-- Packs a message into one value, as `message.pack` does.
local function pack(step, message, history)
    local headers, properties, body = message.headers, message.properties, message.body
    return struct.pack('>I4I4I4I4I4', step, #headers, #properties, #body, #history)
        .. headers .. properties .. body .. history
end
