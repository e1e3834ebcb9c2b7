// The start of the Redis queue's script (redis_queue.cc): what all operations use, and Take, which is the only one that needs
// no epoch to be there. The names of lines are looked at in pages, so that a shard of many lines never holds up the server for
// long.
#pragma once

#include <string_view>

namespace millrace {

inline constexpr std::string_view kTakeScript = R"lua(
local op, epoch, tag = ARGV[1], ARGV[2], ARGV[3]
local K_EPOCH, K_LINES, K_DUE, K_FLIGHT = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local K_KEPT_DUE, K_KEPT, K_SERVER, K_STUBS, K_KEPT_LINES = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[13]
-- Of entries that can expire, those of kept lines apart: an id may be in both, and Take keeps them.
local EXPIRING = {[false] = {body = KEYS[9], expiry = KEYS[10]}, [true] = {body = KEYS[11], expiry = KEYS[12]}}
local BYTES, CHUNK, PAGE, LINES, MARK, TICKET = 16777216, 5000, 4000, 1000, 30, '\0ticket'
local BLOCK = string.rep('\255', 16)
local call = redis.call
local at = 4
local function take()
  local n = tonumber(ARGV[at])
  local list = {}
  for i = 1, n do list[i] = ARGV[at + i] end
  at = at + n + 1
  return list
end
local function is_kept(line) return string.byte(line) == MARK end
-- Kept lines stand in K_KEPT_LINES in the order of org and name, so that those of one org are a range of it.
local function org_of(line)  -- OrgOfLine
  return string.match(line, '^[^\31]*\31[^\31]*\31([^\31]*)') or ''
end
local function member_of(line) return org_of(line) .. '\31' .. line end
local function line_of(member) return string.sub(member, string.find(member, '\31', 1, true) + 1) end
local function add_line(line)
  if is_kept(line) then call('ZADD', K_KEPT_LINES, 0, member_of(line)) else call('SADD', K_LINES, line) end
end
-- Names of lines that are empty may stay, up to so many: they are likely to be wanted again.
local function is_crowded(kept) return (kept and call('ZCARD', K_KEPT_LINES) or call('SCARD', K_LINES)) > 4096 end
local function forget_line(line)
  if is_kept(line) then call('ZREM', K_KEPT_LINES, member_of(line)) else call('SREM', K_LINES, line) end
end
-- A block is one element of a kept line that is many entries: BLOCK, how many (2 bytes), and each after its length (2 bytes).
local function is_block(element) return string.byte(element) == 255 and string.sub(element, 1, 16) == BLOCK end
local function block_head(n) return BLOCK .. string.char(math.floor(n / 256), n % 256) end
local function number_at(bytes, i)
  local a, b = string.byte(bytes, i, i + 1)
  return a * 256 + b
end
local function entries_of(block)
  local list, i = {}, 19
  for k = 1, number_at(block, 17) do
    local n = number_at(block, i)
    list[k] = string.sub(block, i + 2, i + 1 + n)
    i = i + 2 + n
  end
  return list
end
local function flight_head(line) return string.char(math.floor(#line / 256), #line % 256) .. line end
-- How many entries the blocks of a line hold beyond one each, so that a line can be counted.
local function extra(line, n)
  if n ~= 0 and call('HINCRBY', K_STUBS, 'b' .. line, n) == 0 then call('HDEL', K_STUBS, 'b' .. line) end
end
local function each(command, key, list)
  for i = 1, #list, CHUNK do call(command, key, unpack(list, i, math.min(i + CHUNK - 1, #list))) end
end
if op == 'depth' then
  local ready = 0
  for _, line in ipairs(call('SMEMBERS', K_LINES)) do ready = ready + call('LLEN', tag .. ':l:' .. line) end
  for _, member in ipairs(call('ZRANGE', K_KEPT_LINES, 0, -1)) do
    ready = ready + call('LLEN', tag .. ':l:' .. line_of(member))
  end
  -- Kept lines count their stubs each under its name, and 'ks' those that were scheduled.
  local stubs, all = call('HGETALL', K_STUBS), {}
  for i = 1, #stubs, 2 do
    local where = (stubs[i] == 's' or stubs[i] == 'ks') and 's' or 'r'
    local n = tonumber(stubs[i + 1])
    if string.sub(stubs[i], 1, 1) == 'b' then n = -n end
    all[where] = (all[where] or 0) + n
  end
  local due, flying = call('ZCARD', K_DUE) + call('ZCARD', K_KEPT_DUE), call('SCARD', K_FLIGHT)
  for _, field in ipairs(call('HKEYS', K_KEPT)) do
    if #field == 16 then
      flying = flying + 1
    elseif string.sub(field, 1, 1) == 'B' then
      local landed = string.gsub(call('HGET', K_KEPT, 'D' .. string.sub(field, 2)) or '', '%.', '')
      flying = flying + number_at(call('HGET', K_KEPT, field), 17) - #landed
    end
  end
  return {math.max(0, ready - (all.r or 0)), math.max(0, due - (all.s or 0)), flying}
end
-- Out of memory, Redis refuses a script when its first write is one that may need memory. What makes room, and what an owner
-- cannot go on without, must not be refused: only a put is.
if op ~= 'put' then call('HDEL', K_KEPT, '') end
local stored = call('GET', K_EPOCH)
if op == 'take' then
  local stage, after = ARGV[5], ARGV[6]
  if stored and tonumber(stored) > tonumber(epoch) then return redis.error_reply('STALE ' .. stored) end
  -- Which server wrote this, and since which epoch nothing of it was lost.
  local server, since = string.match(call('GET', K_SERVER) or '', '^(%S+) (%d+)$')
  local old = stored and server == ARGV[4] and 0 or 1
  -- What was counted before is not of this store.
  if stage ~= '' and (old == 1 or stored ~= epoch) then return redis.error_reply('WIPED the store was emptied or restarted while the shard was taken') end
  call('SET', K_EPOCH, epoch)
  if old == 1 then
    since = epoch
    call('SET', K_SERVER, ARGV[4] .. ' ' .. epoch)
  end
  local keys, gone, out = {}, {}, {}
  local page, shown, bytes = {}, {}, 0
  local function show(id, entry)
    if shown[id] then return end
    shown[id] = true
    page[#page + 1] = entry
    bytes = bytes + #entry
  end
  if stage == '' then
    keys = {K_DUE, EXPIRING[false].body, EXPIRING[false].expiry}
    if old == 1 then keys[#keys + 1] = K_FLIGHT end
    call('HDEL', K_STUBS, 'r', 's')
    for _, field in ipairs(call('HRANDFIELD', K_KEPT, PAGE)) do
      if #page >= PAGE or bytes > BYTES then break end
      if #field == 16 then
        show(field, call('HGET', K_KEPT, field))
      else  -- what is left of a block gets fields of its own
        local name = string.sub(field, 2)
        local block, landed = call('HGET', K_KEPT, 'B' .. name), call('HGET', K_KEPT, 'D' .. name) or ''
        if block then
          -- Of several lines (its own is empty): each entry begins with the head.
          local line, entries = call('HGET', K_KEPT, 'L' .. name), entries_of(block)
          local head = line == '' and '' or flight_head(line)
          if #page > 0 and #page + #entries > PAGE then break end
          for i, entry in ipairs(entries) do
            local whole = head .. entry
            local id = string.sub(whole, 3 + number_at(whole, 1), 18 + number_at(whole, 1))
            if string.sub(landed, i, i) ~= 'x' then
              call('HSET', K_KEPT, id, whole)
              show(id, whole)
            end
          end
        end
        call('HDEL', K_KEPT, 'B' .. name, 'D' .. name, 'L' .. name)
      end
    end
  end
  -- Ordinary lines go. Kept ones stand here where a broker wrote them that knew no other place.
  for _, line in ipairs(call('SPOP', K_LINES, LINES)) do
    local key = tag .. ':l:' .. line
    if not is_kept(line) then
      keys[#keys + 1] = key
    elseif call('EXISTS', key) == 1 then
      add_line(line)
    else
      gone[#gone + 1] = line
    end
  end
  each('HDEL', K_STUBS, gone)
  for i = 1, #keys, CHUNK do call('UNLINK', unpack(keys, i, math.min(i + CHUNK - 1, #keys))) end
  -- There may be many pages of entries: with one of them, many lines are not counted.
  local on, left, named = '', LINES, 0
  if call('EXISTS', K_LINES) == 1 then
    on = 'o'
  elseif #page == 0 or call('ZCARD', K_KEPT_LINES) <= LINES then
    local stubbed, empty = call('EXISTS', K_STUBS) == 1, {}
    while true do
      local members = call('ZRANGEBYLEX', K_KEPT_LINES, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, 100)
      for _, member in ipairs(members) do
        local line = line_of(member)
        local ready = call('LLEN', tag .. ':l:' .. line)
        if ready == 0 then empty[#empty + 1] = member end
        if ready > 0 and stubbed then
          local counts = call('HMGET', K_STUBS, line, 'b' .. line)
          ready = ready - (tonumber(counts[1] or 0) or 0) + (tonumber(counts[2] or 0) or 0)
        end
        if ready > 0 then
          out[#out + 1] = line
          out[#out + 1] = ready
        end
        named, after = named + #line, member
      end
      left = left - #members
      if #members < 100 then break end
      if left <= 0 or named > 1048576 then
        on = 'k'
        break
      end
    end
    if #empty > 0 then
      local lines = {}
      for i, member in ipairs(empty) do lines[i] = line_of(member) end
      each('HDEL', K_STUBS, lines)
      each('ZREM', K_KEPT_LINES, empty)
    end
  end
  if #page > 0 then on = '' end
  local due = call('ZRANGE', K_KEPT_DUE, 0, 0, 'WITHSCORES')[2] or ''
  return {due, old, out, page, tonumber(since), stage == '' and call('SMEMBERS', K_FLIGHT) or {}, on, on == 'k' and after or ''}
end
)lua";

}  // namespace millrace
