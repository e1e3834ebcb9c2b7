// The end of the Redis queue's script (redis_queue.cc): what lists entries and takes named ones out. A list is looked through
// in pages, so that a look at millions of entries never holds up the server for long.
#pragma once

#include <string_view>

namespace millrace {

// Uses what the script defines before it: ARGV from 4 on are queue_op::Remove's (see ToArguments).
inline constexpr std::string_view kRemoveScript = R"lua(
-- The lines that a look goes on with, from `from` on, one at each call: kept ones of the org (empty: of all), in the order in
-- which they stand, or the named ones.
local function kept_lines(org, all, from)
  local low, high = '-', '+'
  if not all then low, high = '[' .. org .. '\31', '(' .. org .. '\32' end
  if from ~= '' and (all or org_of(from) == org) then low = '[' .. member_of(from) end
  local members, i = {}, 0
  return function()
    if i == #members then
      if i > 0 and i < 100 then return nil end
      if i > 0 then low = '(' .. members[i] end
      members, i = call('ZRANGEBYLEX', K_KEPT_LINES, low, high, 'LIMIT', 0, 100), 0
    end
    i = i + 1
    return members[i] and line_of(members[i])
  end
end
-- Not by order: here it would be that of the server's language, the caller's is by bytes.
local function named_lines(lines, from)
  local i = 0
  for k, line in ipairs(lines) do
    if line == from then i = k - 1 end
  end
  return function()
    i = i + 1
    return lines[i]
  end
end
-- How many elements the next page of a list has: what comes may be much larger than what came, and is read before it is
-- measured. `largest`: of the page before.
local function page_of(bytes, largest) return math.max(1, math.min(32, math.floor((BYTES - bytes) / largest))) end
local LARGE = 1048576  -- expected of an element before one was seen
-- Adds entries to an answer, each behind its line, or 0: the same as before. Returns how many bytes that takes.
local function adder(out)
  local last
  return function(line, entry)
    local again = line == last
    out[#out + 1], out[#out + 2] = again and 0 or line, entry
    last = line
    return #entry + (again and 0 or #line)
  end
end
-- As 'remove', but nothing moves. The cursor comes from a client: whatever it is, it is a place.
if op == 'list' then
  local left, stage, at, from, org = tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], ARGV[8]
  local out, bytes = {{}, 0}, 0
  if #at > 15 or not string.match(at, '^%d+$') then at = '0' end
  local show = adder(out)
  -- A ticket whose body is gone stands for nothing.
  local function lives(element)
    return not is_ticket(element) or call('HEXISTS', EXPIRING[true].body, string.sub(element, 1, 16)) == 1
  end
  if stage ~= 'l' then
    while true do
      local page = call('ZSCAN', K_KEPT_DUE, at, 'COUNT', 16)
      at = page[1]
      for i = 1, #page[2], 2 do
        local member = page[2][i]
        local n = number_at(member, 1)
        local line, entry = string.sub(member, 3, 2 + n), string.sub(member, 3 + n)
        if is_kept(line) and org_of(line) == org and lives(entry) then show(line, string.sub(entry, 1, 16)) end
        bytes = bytes + #member
      end
      left = left - #page[2] / 2
      if at == '0' then break end
      if left <= 0 or bytes > BYTES then
        out[1] = {'s', at, ''}
        return out
      end
    end
    at, from = '0', ''
  end
  local largest = LARGE
  for line in kept_lines(org, false, from) do
    local key, seen = tag .. ':l:' .. line, line == from and tonumber(at) or 0
    while true do
      if left <= 0 or bytes > BYTES then
        out[1] = {'l', tostring(seen), line}
        return out
      end
      local n = page_of(bytes, largest)
      local page, looked = call('LRANGE', key, -seen - n, -seen - 1), 0
      largest = 1
      for i = #page, 1, -1 do
        if left <= 0 or bytes > BYTES then break end
        local element = page[i]
        looked, left, bytes, largest = looked + 1, left - 1, bytes + #element, math.max(largest, #element)
        if is_block(element) then
          local entries = entries_of(element)
          left = left - #entries + 1
          for _, entry in ipairs(entries) do show(line, string.sub(entry, 1, 16)) end
        elseif lives(element) then
          show(line, string.sub(element, 1, 16))
        end
      end
      seen = seen + looked
      if looked == #page and #page < n then break end
    end
    left, bytes = left - (seen == 0 and 1 or 0), bytes + #line
  end
  return out
end
if op == 'remove' then
  local left, bytes, scheduled = tonumber(ARGV[4]), 0, ARGV[5] == '1'
  local stage, at, from, org = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
  local lines, ids, wanted, got, lost, order = {}, {}, {}, {}, {}, {}
  local first_id = 11 + tonumber(ARGV[10])
  local named = {}
  for i = 11, first_id - 1 do
    lines[#lines + 1] = ARGV[i]
    named[ARGV[i]] = true
  end
  for i = first_id, #ARGV do
    ids[#ids + 1] = ARGV[i]
    wanted[ARGV[i]] = true
  end
  local missing, kept, add = #ids, #lines == 0, adder(got)
  local here = EXPIRING[kept]
  local function ours(line)
    return not kept or org == '' or org_of(line) == org
  end
  local function found(line, entry, ready)
    local id = string.sub(entry, 1, 16)
    bytes = bytes + add(line, entry)
    fly(line, id, entry)
    if not kept then
      wanted[id] = nil
      missing = missing - 1
    end
    if not ready then return end
    if not lost[line] then lost[line] = 0 order[#order + 1] = line end
    lost[line] = lost[line] + 1
  end
  local function answer(cursor)
    local out = {cursor, #order}
    for _, line in ipairs(order) do
      out[#out + 1] = line
      out[#out + 1] = lost[line]
    end
    for i = 1, #got do out[#out + 1] = got[i] end
    return out
  end
  -- Those that can expire are found by their id.
  if stage == '' then
    for _, id in ipairs(ids) do
      if bytes > BYTES then return answer({'', '', ''}) end
      local body = call('HGET', here.body, id)
      if body then
        local line, where = string.sub(body, 4, 3 + number_at(body, 2)), string.sub(body, 1, 1)
        if (kept and ours(line)) or (where == 'r' and named[line]) or (where == 's' and scheduled) then
          call('HDEL', here.body, id)
          call('ZREM', here.expiry, id)
          call('HINCRBY', K_STUBS, kept and (where == 'r' and line or 'ks') or where, 1)
          found(line, id .. string.sub(body, 4 + #line), where == 'r')
        end
      end
    end
    stage, at = (kept or scheduled) and 's' or 'l', '0'
  end
  -- The schedule before the lines: what moves between the two moves this way.
  if stage == 's' then
    local due = kept and K_KEPT_DUE or K_DUE
    while missing > 0 do
      local page = call('ZSCAN', due, at, 'COUNT', 16)
      at = page[1]
      for i = 1, #page[2], 2 do
        local member = page[2][i]
        local n = number_at(member, 1)
        local line, entry = string.sub(member, 3, 2 + n), string.sub(member, 3 + n)
        if wanted[string.sub(entry, 1, 16)] and not is_ticket(entry) and ours(line) then
          call('ZREM', due, member)
          found(line, entry, false)
        end
        bytes = bytes + #member
      end
      left = left - #page[2] / 2
      if at == '0' then break end
      if left <= 0 or bytes > BYTES then return answer({'s', at, ''}) end
    end
    stage, at = 'l', '0'
  end
  -- From the end of a line to its front: what is put at either end meanwhile hides nothing.
  local largest = LARGE
  for line in kept and kept_lines(org, org == '', from) or named_lines(lines, from) do
    local key, seen = tag .. ':l:' .. line, line == from and tonumber(at) or 0
    while missing > 0 do
      if left <= 0 or bytes > BYTES then return answer({'l', tostring(seen), line}) end
      local n = page_of(bytes, largest)
      local page, marked, looked = call('LRANGE', key, -seen - n, -seen - 1), 0, 0
      largest = 1
      for i = #page, 1, -1 do
        if left <= 0 or bytes > BYTES or missing == 0 then break end
        local element = page[i]
        looked, left, bytes, largest = looked + 1, left - 1, bytes + #element, math.max(largest, #element)
        if kept and is_block(element) then
          local entries, stay = entries_of(element), {}
          for _, entry in ipairs(entries) do
            if wanted[string.sub(entry, 1, 16)] then
              found(line, entry, true)
            else
              stay[#stay + 1] = string.char(math.floor(#entry / 256), #entry % 256) .. entry
            end
          end
          left = left - #entries + 1
          if #stay == 0 then
            call('LSET', key, i - 1 - #page - seen, '\0removed')
            marked = marked + 1
            extra(line, 1 - #entries)
          elseif #stay < #entries then
            local rest = #stay == 1 and string.sub(stay[1], 3) or block_head(#stay) .. table.concat(stay)
            call('LSET', key, i - 1 - #page - seen, rest)
            extra(line, #stay - #entries)
          end
        elseif wanted[string.sub(element, 1, 16)] and not is_ticket(element) then
          call('LSET', key, i - 1 - #page - seen, '\0removed')
          marked = marked + 1
          found(line, element, true)
        end
      end
      if marked > 0 then call('LREM', key, -marked, '\0removed') end
      seen = seen + looked - marked
      if looked == #page and #page < n then break end
    end
    left = left - (seen == 0 and 1 or 0)
    if lost[line] and call('EXISTS', key) == 0 and is_crowded(kept) then forget_line(line) end
  end
  return answer({})
end
return redis.error_reply('ERR unknown operation')
)lua";

}  // namespace millrace
