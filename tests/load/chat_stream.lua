-- A short chat as a stream. A stream that does not end with [DONE] is shown.
local count = 0

request = function()
  count = count + 1
  local body = string.format(
    '{"messages": [{"role": "system", "content": "You are the assistant of Blue Harbor, a hotel. ' ..
    'The manager is Rosa."}, {"role": "user", "content": "Guest %d asks: who is the manager?"}], ' ..
    '"temperature": 0, "max_tokens": 16, "stream": true}', count)
  return wrk.format("POST", "/v1/chat/completions", {["Content-Type"] = "application/json"}, body)
end

response = function(status, headers, body)
  if status == 200 and not string.find(body, "data: [DONE]", 1, true) then
    print("incomplete stream: " .. body)
  end
end
