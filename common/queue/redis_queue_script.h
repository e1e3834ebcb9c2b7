// The Redis queue's script (redis_queue.cc): what each operation does to the keys of a shard. redis_queue_take.h is its start,
// redis_queue_remove.h its end.
#pragma once

#include <string_view>

namespace millrace {

// One script for all operations; for the usual case of the most frequent ones there are small ones beside it
// (redis_queue_hot.h). Lua's unpack is limited, so variadic commands go in chunks of 5000; replies and pops are bounded by
// bytes, so that big bodies cannot block.
inline constexpr std::string_view kQueueScript = R"lua(
if not stored then return redis.error_reply('WIPED the shard has no epoch') end
if stored ~= epoch then return redis.error_reply('STALE ' .. stored) end
local function push(command, line, list)
  local key = tag .. ':l:' .. line
  local length = 0
  for i = 1, #list, CHUNK do length = call(command, key, unpack(list, i, math.min(i + CHUNK - 1, #list))) end
  if length == #list then add_line(line) end
end
local function landed(ids)
  if #ids == 0 then return end
  if call('EXISTS', K_FLIGHT) == 1 then each('SREM', K_FLIGHT, ids) end
  if call('EXISTS', K_KEPT) == 1 then each('HDEL', K_KEPT, ids) end
end
-- Of blocks in flight: those that are over, and what has left the others.
local function settled(over, marks)
  each('HDEL', K_KEPT, over)
  each('HSET', K_KEPT, marks)
end
local function fly(line, id, entry)
  if not is_kept(line) then return call('SADD', K_FLIGHT, id) end
  call('HSET', K_KEPT, id, flight_head(line) .. entry)
end
-- An id that was put in twice leaves a stub that was never counted.
local function stubs_gone(where, n)
  if n > 0 and call('HINCRBY', K_STUBS, where, -n) <= 0 then call('HDEL', K_STUBS, where) end
end
if op == 'put' or op == 'back' then
  local lines = tonumber(ARGV[4])
  at = 5
  each('HSET', K_KEPT, take())  -- what goes straight into flight
  each('SADD', K_FLIGHT, take())
  local gone, over, marks = take(), take(), take()
  local due, kept_due = take(), take()
  local bodies, expiry, kept_bodies, kept_expiry = take(), take(), take(), take()
  for _ = 1, lines do
    local line, more = ARGV[at], tonumber(ARGV[at + 1])
    at = at + 2
    push(op == 'put' and 'RPUSH' or 'LPUSH', line, take())
    extra(line, more)
  end
  each('ZADD', K_DUE, due)
  each('ZADD', K_KEPT_DUE, kept_due)
  landed(gone)
  settled(over, marks)
  each('HSET', EXPIRING[false].body, bodies)
  each('ZADD', EXPIRING[false].expiry, expiry)
  each('HSET', EXPIRING[true].body, kept_bodies)
  each('ZADD', EXPIRING[true].expiry, kept_expiry)
  return {}
end
-- An id may be there twice (put back after it expired, submitted twice): one of its tickets has the body, the others are stubs.
local function is_ticket(element) return #element == 23 and string.sub(element, 17) == TICKET end
if op == 'claim' then
  -- Of each line its own list; what goes into flight is written for all of them at once.
  local names, crowded, stubbed = ARGV[4], {}, call('EXISTS', K_STUBS) == 1
  local bytes, flown, ids, tickets, taken = 0, {}, {}, {[false] = {}, [true] = {}}, {[false] = {}, [true] = {}}
  local function take_block(line, key, block, most, number)
    local n, all = number_at(block, 17), number_at(block, 17)
    call('LTRIM', key, 1, -1)  -- not LPOP, and no prefix below: Redis hashes every string that a script sees, byte by byte
    if n > most then
      local i = 19
      for _ = 1, most do i = i + 2 + number_at(block, i) end
      local rest = string.sub(block, i)
      n, block = most, block_head(most) .. string.sub(block, 19, i - 1)
      rest = block_head(all - n) .. rest
      -- Not again and again for a few entries each. One alone is no block: nothing would say that the line has one.
      if all - n > 1 and 4 * n >= all - n then
        call('LPUSH', key, rest)
        extra(line, -n)
      else
        local entries = entries_of(rest)
        for k = #entries, 1, -1 do call('LPUSH', key, entries[k]) end
        extra(line, 1 - all)
      end
    else
      extra(line, 1 - n)
    end
    local name = names .. string.format('%012d', number)
    call('HSET', K_KEPT, 'B' .. name, block, 'L' .. name, line)
    return block, n
  end
  local function claim(line, want, next_block)
    local kept = is_kept(line)
    local here, head, done = EXPIRING[kept], kept and flight_head(line), taken[kept]
    local key = tag .. ':l:' .. line
    -- What a line with blocks has is looked at before it is taken out, and so is how large it may be.
    local blocks = stubbed and kept and call('HEXISTS', K_STUBS, 'b' .. line) == 1
    local front = '.'
    if want > 1 or blocks then front = call('LINDEX', key, 0) end
    if want == 0 or not front then return {} end
    local got, count, stubs = {}, 0, 0
    while count < want and (bytes < BYTES or count == 0) do
      local popped = {}
      if blocks then
        front = call('LINDEX', key, 0)
        if not front or (count > 0 and bytes + #front > BYTES) then break end
      end
      if blocks and is_block(front) then
        local block, n = take_block(line, key, front, want - count, next_block)
        next_block = next_block + 1
        got[#got + 1] = block
        count, bytes = count + n, bytes + #block
      else
        local n = blocks and 1 or math.min(want - count, math.max(1, math.floor((BYTES - bytes) / #front)))
        popped = call('LPOP', key, n)
        if not popped then break end
      end
      for i = 1, #popped do
        local element, id = popped[i], string.sub(popped[i], 1, 16)
        local body, ticket = element, is_ticket(element)
        if ticket then
          body = not done[id] and call('HGET', here.body, id)
          if body and string.sub(body, 1, 1) == 'r' then
            local a, b = string.byte(body, 2, 3)
            done[id] = true
            body = id .. string.sub(body, 4 + a * 256 + b)
          else
            body = nil
            stubs = stubs + 1
          end
        end
        if body then
          if count > 0 and bytes + #body > BYTES then
            if ticket then done[id] = nil end
            for k = #popped, i, -1 do call('LPUSH', key, popped[k]) end
            bytes = BYTES
            break
          end
          count, bytes = count + 1, bytes + #body
          got[#got + 1] = body
          if kept then
            flown[#flown + 1] = id
            flown[#flown + 1] = head .. body
          else
            ids[#ids + 1] = id
          end
          if ticket then tickets[kept][#tickets[kept] + 1] = id end
        end
      end
      if count > 0 and stubs > 20000 then break end
    end
    stubs_gone(kept and line or 'r', stubs)
    if crowded[kept] == nil then crowded[kept] = is_crowded(kept) end
    if crowded[kept] and call('EXISTS', key) == 0 then forget_line(line) end
    return got
  end
  local out = {}
  for i = 5, #ARGV, 3 do out[#out + 1] = claim(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])) end
  each('HSET', K_KEPT, flown)
  each('SADD', K_FLIGHT, ids)
  for kept, here in pairs(EXPIRING) do
    each('HDEL', here.body, tickets[kept])
    each('ZREM', here.expiry, tickets[kept])
  end
  return out
end
if op == 'promote' then
  local left, bytes, largest, order, by_line = tonumber(ARGV[5]), 0, 0, {}, {}
  local first = ''
  for _, key in ipairs({K_KEPT_DUE, K_DUE}) do
    while left > 0 and bytes < BYTES do
      local page = largest == 0 and 16 or math.max(1, math.min(128, math.floor((BYTES - bytes) / largest)))
      local batch = call('ZRANGEBYSCORE', key, '-inf', ARGV[4], 'LIMIT', 0, math.min(left, page))
      if #batch == 0 then break end
      for _, member in ipairs(batch) do
        local size = #member
        local a, b = string.byte(member, 1, 2)
        local n = a * 256 + b
        local line, element = string.sub(member, 3, 2 + n), string.sub(member, 3 + n)
        local here = true
        if is_ticket(element) then
          local bodies, id = EXPIRING[is_kept(line)].body, string.sub(element, 1, 16)
          local body = call('HGET', bodies, id)
          if body and string.sub(body, 1, 1) == 's' then
            size = size + #body
            call('HSET', bodies, id, 'r' .. string.sub(body, 2))
          else
            here = false
            stubs_gone(is_kept(line) and 'ks' or 's', 1)
          end
        end
        if here then
          if not by_line[line] then by_line[line] = {} order[#order + 1] = line end
          table.insert(by_line[line], element)
        end
        bytes, largest = bytes + size, math.max(largest, size)
      end
      call('ZREMRANGEBYRANK', key, 0, #batch - 1)
      left = left - #batch
    end
    local next_one = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
    if next_one and (first == '' or tonumber(next_one) < tonumber(first)) then first = next_one end
  end
  local out = {first}
  for _, line in ipairs(order) do
    push('RPUSH', line, by_line[line])
    out[#out + 1] = line
    out[#out + 1] = #by_line[line]
  end
  return out
end
if op == 'expire' then
  local left, bytes, got, order, lost, first = tonumber(ARGV[5]), 0, {}, {}, {}, ''
  for kept, here in pairs(EXPIRING) do
    while left > 0 and bytes < BYTES do
      local batch = call('ZRANGEBYSCORE', here.expiry, '-inf', ARGV[4], 'LIMIT', 0, math.min(left, 128))
      if #batch == 0 then break end
      local looked = 0
      for _, id in ipairs(batch) do
        if bytes >= BYTES then break end
        looked = looked + 1
        local body = call('HGET', here.body, id)
        if body then
          local a, b = string.byte(body, 2, 3)
          local line = string.sub(body, 4, 3 + a * 256 + b)
          got[#got + 1], got[#got + 2] = line, id .. string.sub(body, 4 + #line)
          fly(line, id, got[#got])
          bytes = bytes + #body
          local where = string.sub(body, 1, 1)
          call('HINCRBY', K_STUBS, kept and (where == 'r' and line or 'ks') or where, 1)
          if where == 'r' then
            if not lost[line] then lost[line] = 0 order[#order + 1] = line end
            lost[line] = lost[line] + 1
          end
        end
      end
      call('HDEL', here.body, unpack(batch, 1, looked))
      call('ZREM', here.expiry, unpack(batch, 1, looked))
      left = left - looked
    end
    local next_one = call('ZRANGE', here.expiry, 0, 0, 'WITHSCORES')[2]
    if next_one and (first == '' or tonumber(next_one) < tonumber(first)) then first = next_one end
  end
  -- Stubs at the front of a line go at once.
  for _, line in ipairs(order) do
    local key = tag .. ':l:' .. line
    local stubs, bodies = 0, EXPIRING[is_kept(line)].body
    local front = call('LINDEX', key, 0)
    for _, element in ipairs(front and is_ticket(front) and call('LRANGE', key, 0, 999) or {}) do
      if not is_ticket(element) or call('HEXISTS', bodies, string.sub(element, 1, 16)) == 1 then break end
      stubs = stubs + 1
    end
    if stubs > 0 then
      call('LTRIM', key, stubs, -1)
      stubs_gone(is_kept(line) and line or 'r', stubs)
    end
  end
  local out = {first, #order}
  for _, line in ipairs(order) do
    out[#out + 1] = line
    out[#out + 1] = lost[line]
  end
  for i = 1, #got do out[#out + 1] = got[i] end
  return out
end
)lua";

}  // namespace millrace
