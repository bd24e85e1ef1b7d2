-- A short chat, the answer in one piece. Every request asks something else.
local count = 0

request = function()
  count = count + 1
  local body = string.format(
    '{"messages": [{"role": "system", "content": "You are the assistant of Blue Harbor, a hotel. ' ..
    'The manager is Rosa."}, {"role": "user", "content": "Guest %d asks: who is the manager?"}], ' ..
    '"temperature": 0, "max_tokens": 16}', count)
  return wrk.format("POST", "/v1/chat/completions", {["Content-Type"] = "application/json"}, body)
end

response = function(status, headers, body)
  if status == 200 and not string.find(body, '"finish_reason":"', 1, true) then
    print("incomplete answer: " .. body)
  end
end
