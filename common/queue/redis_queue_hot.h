// Scripts of the Redis queue's hot operations: what redis_queue_script.h does for every case, these do for the usual one, with
// nothing defined that it does not need. Each checks the epoch first. They share no state with one another, and the connection
// keeps the order of a pipeline whichever of them the server has lost (redis::Connection::AppendScript).
#pragma once

#include <string_view>

namespace millrace {

// ARGV: the epoch; fields and values of entries of kept lines that go into flight; ids of others that do; then, of each line,
// its key, its name, how many entries its blocks hold beyond one each, and its elements. Each list after its length. Lua's
// unpack is limited, so variadic commands go in chunks. KEYS: epoch, lines, flight, kept, stubs, kept_lines.
inline constexpr std::string_view kPutScript = R"lua(
local call, stored = redis.call, redis.call('GET', KEYS[1])
if stored ~= ARGV[1] then return redis.error_reply(stored and 'STALE ' .. stored or 'WIPED the shard has no epoch') end
local last = 2 + ARGV[2]
for i = 3, last, 5000 do call('HSET', KEYS[4], unpack(ARGV, i, math.min(i + 4999, last))) end
local at = last + 1
last = at + ARGV[at]
for i = at + 1, last, 5000 do call('SADD', KEYS[3], unpack(ARGV, i, math.min(i + 4999, last))) end
at = last + 1
while ARGV[at] do
  local n, length = tonumber(ARGV[at + 3]), 0
  last = at + 3 + n
  for i = at + 4, last, 5000 do length = call('RPUSH', ARGV[at], unpack(ARGV, i, math.min(i + 4999, last))) end
  if length == n then
    local line = ARGV[at + 1]
    if string.byte(line) == 30 then
      local org = string.match(line, '^[^\31]*\31[^\31]*\31([^\31]*)') or ''
      call('ZADD', KEYS[6], 0, org .. '\31' .. line)
    else
      call('SADD', KEYS[2], line)
    end
  end
  if ARGV[at + 2] ~= '0' then call('HINCRBY', KEYS[5], 'b' .. ARGV[at + 1], ARGV[at + 2]) end
  at = last + 1
end
)lua";

// ARGV: the epoch; ids; fields of blocks that are over; fields and values of the marks of others. Each list after its length.
// KEYS: epoch, flight, kept. Out of memory, Redis refuses a script's first write when it is one that may need memory: so it is
// never the HSET.
inline constexpr std::string_view kFinishScript = R"lua(
local call, stored = redis.call, redis.call('GET', KEYS[1])
if stored ~= ARGV[1] then return redis.error_reply(stored and 'STALE ' .. stored or 'WIPED the shard has no epoch') end
local last = 2 + ARGV[2]
if last > 2 then
  for k = 2, 3 do
    if last == 3 or call('EXISTS', KEYS[k]) == 1 then
      local command = k == 2 and 'SREM' or 'HDEL'
      for i = 3, last, 5000 do call(command, KEYS[k], unpack(ARGV, i, math.min(i + 4999, last))) end
    end
  end
end
local at = last + 1
last = at + ARGV[at]
for i = at + 1, last, 5000 do call('HDEL', KEYS[3], unpack(ARGV, i, math.min(i + 4999, last))) end
at = last + 1
last = at + ARGV[at]
if last > at then
  call('HDEL', KEYS[3], ARGV[at + 1])
  for i = at + 1, last, 5000 do call('HSET', KEYS[3], unpack(ARGV, i, math.min(i + 4999, last))) end
end
)lua";

}  // namespace millrace
