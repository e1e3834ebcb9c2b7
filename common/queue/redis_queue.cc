#include "common/queue/redis_queue.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "common/base/log.h"
#include "common/drivers/redis.h"
#include "common/queue/redis_flight.h"
#include "common/queue/redis_keys.h"
#include "common/queue/redis_queue_hot.h"
#include "common/queue/redis_queue_remove.h"
#include "common/queue/redis_queue_script.h"
#include "common/queue/redis_queue_take.h"

namespace millrace {
namespace {

constexpr std::int64_t kScoreMax = std::int64_t{1} << 53;  // scores are doubles: exact up to here
constexpr std::size_t kIdBytes = 16;
// In a line or the schedule, an entry that can expire is its id and this word; the rest of it is in the shard's hash of bodies.
// Expiring takes it out of there, in constant time: what is left in the line is a stub that a claim passes over.
constexpr std::string_view kTicket{"\0ticket", 7};
// Entries of kept lines that are put in together are one element of their line: a block (see the script). They are claimed as
// one and lie in flight as one, which costs Redis a fraction of what as many elements do. A claim of a part splits it: small
// ones are not worth it.
//
// What goes straight into flight needs no list, so a block in flight may be of several lines. What is in one should leave it
// together: it ends where another queue or priority begins, unless few are in it.
constexpr std::size_t kBlockEntriesMin = 8, kBlockEntriesMax = 128, kBlockOfTurnMin = 16;
constexpr std::size_t kBlockBytesMax = 48u << 10, kBlockEntryBytesMax = 8u << 10;
constexpr std::string_view kBlockMark{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"};
static_assert(kBlockMark.size() == kIdBytes);
constexpr std::size_t kClaimLinesMax = 256;  // of one run of the script, which blocks the server

// Which script an operation is a run of.
enum class Run : std::uint8_t { kAny, kPut, kFinish };

std::string PackReady(const QueueEntry& entry) {
  return std::string{entry.id.AsBytes()} + (entry.expires_at ? std::string{kTicket} : entry.body);
}

std::string PackLine(const QueueEntry& entry) {
  std::string packed;
  packed += static_cast<char>(entry.line.size() >> 8);
  packed += static_cast<char>(entry.line.size() & 0xff);
  return packed + entry.line;
}

std::string PackDue(const QueueEntry& entry) { return PackLine(entry) + PackReady(entry); }

// What the hash of bodies has of an entry: whether it is ready or scheduled, its line, its body.
std::string PackBody(const QueueEntry& entry) { return (entry.run_at ? "s" : "r") + PackLine(entry) + entry.body; }

bool IsScore(WallTime time) { return ToUnixMicros(time) >= -kScoreMax && ToUnixMicros(time) <= kScoreMax; }

Result<void> Validate(std::span<const QueueEntry> entries) {
  for (const QueueEntry& entry : entries) {
    if (entry.line.size() > 0xffff)
      return Fail(ErrorCode::kInvalidArgument, "job {}: a line of {} bytes, limit 65535", entry.id.ToString(),
                  entry.line.size());
    if (entry.run_at && !IsScore(*entry.run_at))
      return Fail(ErrorCode::kInvalidArgument, "job {}: run_at is out of range", entry.id.ToString());
    if (entry.expires_at && !IsScore(*entry.expires_at))
      return Fail(ErrorCode::kInvalidArgument, "job {}: expires_at is out of range", entry.id.ToString());
    if (entry.id.AsBytes() == kBlockMark)
      return Fail(ErrorCode::kInvalidArgument, "job {}: an id that the queue keeps for itself", entry.id.ToString());
    if (entry.body == kTicket)
      return Fail(ErrorCode::kInvalidArgument, "job {}: its body is a word that the queue keeps for itself",
                  entry.id.ToString());
  }
  return {};
}

using Arguments = std::vector<std::string>;

void AddList(Arguments& arguments, Arguments& list) {
  arguments.push_back(std::to_string(list.size()));
  std::ranges::move(list, std::back_inserter(arguments));
}

void AppendShort(std::string& out, std::size_t n) {
  out += static_cast<char>(n >> 8);
  out += static_cast<char>(n & 0xff);
}

// The elements of one line, in order.
struct LineElements {
  Arguments elements;
  std::size_t extra = 0;  // entries beyond one per element
};

// `lines`: each entry says its own.
std::string PackBlock(std::span<const QueueEntry* const> entries, std::size_t bytes, bool lines = false) {
  std::string block;
  block.reserve(kIdBytes + 2 + bytes);
  block = kBlockMark;
  AppendShort(block, entries.size());
  for (const QueueEntry* entry : entries) {
    AppendShort(block, (lines ? 2 + entry->line.size() : 0) + kIdBytes + entry->body.size());
    if (lines) {
      AppendShort(block, entry->line.size());
      block += entry->line;
    }
    block.append(entry->id.AsBytes()).append(entry->body);
  }
  return block;
}

// Cuts entries of one kept line (or of several, `lines`) into blocks and, in order between them, single ones. `may` says which
// can be in a block.
template <class May, class Block, class Single>
void CutIntoBlocks(std::span<const QueueEntry* const> entries, bool lines, May may, Block block, Single single) {
  std::size_t begin = 0, bytes = 0;
  const auto close = [&](std::size_t end) {
    if (end - begin >= kBlockEntriesMin)
      block(entries.subspan(begin, end - begin), bytes);
    else
      for (; begin < end; ++begin) single(*entries[begin]);
    begin = end;
    bytes = 0;
  };
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const QueueEntry& entry = *entries[i];
    const std::size_t size = 2 + kIdBytes + entry.body.size() + (lines ? 2 + entry.line.size() : 0);
    const bool blockable = may(entry) && size <= kBlockEntryBytesMax;
    const bool turn_over = lines && i - begin >= kBlockOfTurnMin && TurnOfLine(entry.line) != TurnOfLine(entries[i - 1]->line);
    if (!blockable || i - begin == kBlockEntriesMax || bytes + size > kBlockBytesMax || turn_over) close(i);
    bytes += size;
    if (!blockable) close(i + 1);
  }
  close(entries.size());
}

void AddElements(LineElements& to, std::span<const QueueEntry* const> entries, bool kept) {
  CutIntoBlocks(
      entries, false, [kept](const QueueEntry& entry) { return kept && !entry.expires_at; },
      [&](std::span<const QueueEntry* const> block, std::size_t bytes) {
        to.elements.push_back(PackBlock(block, bytes));
        to.extra += block.size() - 1;
      },
      [&](const QueueEntry& entry) { to.elements.push_back(PackReady(entry)); });
}

// What an Enqueue puts straight into flight, as a claim would have left it there.
struct Passed {
  Arguments kept, ids;  // fields and values; of ordinary lines
  std::vector<JobId> single;
  std::vector<std::pair<std::string, std::vector<JobId>>> blocks;  // by name

  Passed(std::span<const QueueEntry> entries, Epoch epoch, std::uint64_t next_block) {
    std::vector<const QueueEntry*> in_kept;
    for (const QueueEntry& entry : entries) {
      if (IsKeptLine(entry.line))
        in_kept.push_back(&entry);
      else
        ids.emplace_back(entry.id.AsBytes());
    }
    const auto turn = [](const QueueEntry* entry) { return TurnOfLine(entry->line); };
    if (!std::ranges::is_sorted(in_kept, {}, turn)) std::ranges::stable_sort(in_kept, {}, turn);
    AddKept(in_kept, epoch, next_block);
  }
  void Apply(RedisFlight& flight) const {
    for (const JobId& id : single) flight.Claimed(id);
    for (const auto& [name, of_block] : blocks) flight.ClaimedBlock(name, of_block);
  }
  void Undo(RedisFlight& flight) const {
    for (const JobId& id : single) flight.Forget(id);
    for (const auto& [name, of_block] : blocks) flight.ForgetBlock(name, of_block);
  }

 private:
  void AddKept(const std::vector<const QueueEntry*>& in_kept, Epoch epoch, std::uint64_t next_block) {
    const auto block = [&](std::span<const QueueEntry* const> part, std::size_t bytes) {
      std::string name = RedisFlight::EpochName(epoch) + RedisFlight::NumberName(next_block + blocks.size());
      const std::string& line = part.front()->line;
      const bool lines = std::ranges::any_of(part, [&](const QueueEntry* entry) { return entry->line != line; });
      kept.push_back("B" + name);
      kept.push_back(PackBlock(part, bytes, lines));
      kept.push_back("L" + name);
      kept.push_back(lines ? std::string() : line);
      std::vector<JobId> of_block;
      of_block.reserve(part.size());
      for (const QueueEntry* entry : part) of_block.push_back(entry->id);
      blocks.emplace_back(std::move(name), std::move(of_block));
    };
    CutIntoBlocks(
        in_kept, true, [](const QueueEntry&) { return true; }, block,
        [&](const QueueEntry& entry) {
          kept.emplace_back(entry.id.AsBytes());
          kept.push_back(PackLine(entry).append(entry.id.AsBytes()).append(entry.body));
          single.push_back(entry.id);
        });
  }
};

// The entries that are ready, by their lines.
using ByLine = std::map<std::string_view, std::vector<const QueueEntry*>>;

// kPutScript: nothing among the entries is scheduled or can expire.
void AddPlainPut(Arguments& arguments, std::span<const QueueEntry> entries, Passed& passed, const ShardKeys& keys) {
  AddList(arguments, passed.kept);
  AddList(arguments, passed.ids);
  ByLine lines;
  for (const QueueEntry& entry : entries) lines[entry.line].push_back(&entry);
  for (auto& [line, of_line] : lines) {
    LineElements elements;
    AddElements(elements, of_line, IsKeptLine(line));
    arguments.push_back(fmt::format("{}:l:{}", keys.tag, line));
    arguments.emplace_back(line);
    arguments.push_back(std::to_string(elements.extra));
    AddList(arguments, elements.elements);
  }
}

void AddPut(Arguments& arguments, std::span<const QueueEntry> entries, bool back, Passed passed, RedisFlight& flight) {
  ByLine lines;
  Arguments due, kept_due, bodies, expiry, kept_bodies, kept_expiry;
  RedisFlight::Landing gone;
  if (back) gone = flight.Land(entries, &QueueEntry::id);
  for (const QueueEntry& entry : entries) {
    if (entry.expires_at) {
      const bool kept = IsKeptLine(entry.line);
      Arguments &into = kept ? kept_bodies : bodies, &times = kept ? kept_expiry : expiry;
      into.emplace_back(entry.id.AsBytes());
      into.push_back(PackBody(entry));
      times.push_back(std::to_string(ToUnixMicros(*entry.expires_at)));
      times.emplace_back(entry.id.AsBytes());
    }
    if (entry.run_at) {
      Arguments& to = IsKeptLine(entry.line) ? kept_due : due;
      to.push_back(std::to_string(ToUnixMicros(*entry.run_at)));
      to.push_back(PackDue(entry));
    } else {
      lines[entry.line].push_back(&entry);
    }
  }
  arguments.push_back(std::to_string(lines.size()));
  for (Arguments* list : {&passed.kept, &passed.ids, &gone.ids, &gone.over, &gone.marks, &due, &kept_due, &bodies, &expiry,
                          &kept_bodies, &kept_expiry})
    AddList(arguments, *list);
  for (auto& [line, of_line] : lines) {
    LineElements elements;
    AddElements(elements, of_line, !back && IsKeptLine(line));
    if (back) std::ranges::reverse(elements.elements);  // LPUSH turns them round again: the first given is the next claimed
    arguments.emplace_back(line);
    arguments.push_back(std::to_string(elements.extra));
    AddList(arguments, elements.elements);
  }
}

// Makes the arguments of an operation: after the head, which differs by script (see RedisQueueImpl::AppendOp).
struct ToArguments {
  Arguments& out;
  std::string_view server;  // its run_id
  const ShardKeys& keys;
  RedisFlight& flight;
  std::uint64_t& next_block;
  std::optional<Passed>& passed;
  void Head(std::string_view op, Epoch epoch) {
    out.emplace_back(op);
    out.push_back(std::to_string(epoch.value()));
    out.push_back(keys.tag);
  }
  Run operator()(const queue_op::Take& op) {
    Head("take", op.epoch), out.emplace_back(server);
    out.push_back(op.cursor.substr(0, 1));
    out.push_back(op.cursor.substr(std::min<std::size_t>(1, op.cursor.size())));
    return Run::kAny;
  }
  Run operator()(const queue_op::Enqueue& op) {
    Passed& flying = passed.emplace(op.passed, op.epoch, next_block);
    next_block += flying.blocks.size();
    if (std::ranges::none_of(op.entries, [](const QueueEntry& e) { return e.run_at || e.expires_at; })) {
      out.push_back(std::to_string(op.epoch.value()));
      AddPlainPut(out, op.entries, flying, keys);
      return Run::kPut;
    }
    Head("put", op.epoch);
    AddPut(out, op.entries, false, flying, flight);
    return Run::kAny;
  }
  Run operator()(const queue_op::Requeue& op) {
    Head("back", op.epoch);
    AddPut(out, op.entries, true, Passed({}, op.epoch, 0), flight);
    return Run::kAny;
  }
  // Of one shard, one after the other: a run of the script costs more than a line.
  Run operator()(std::span<const QueueOp> claims) {
    const auto& first = std::get<queue_op::Claim>(claims.front());
    Head("claim", first.epoch);
    out.push_back(RedisFlight::EpochName(first.epoch));
    for (const QueueOp& any : claims) {
      const auto& op = std::get<queue_op::Claim>(any);
      out.push_back(op.line);
      out.push_back(std::to_string(op.max));
      out.push_back(std::to_string(next_block));
      next_block += op.max;
    }
    return Run::kAny;
  }
  Run operator()(const queue_op::Finish& op) {
    out.push_back(std::to_string(op.epoch.value()));
    RedisFlight::Landing gone = flight.Land(op.ids, std::identity{});
    for (Arguments* list : {&gone.ids, &gone.over, &gone.marks}) AddList(out, *list);
    return Run::kFinish;
  }
  Run operator()(const queue_op::Promote& op) {
    Head("promote", op.epoch);
    out.push_back(std::to_string(ToUnixMicros(op.now)));
    out.push_back(std::to_string(op.max));
    return Run::kAny;
  }
  Run operator()(const queue_op::ExpireDue& op) {
    Head("expire", op.epoch);
    out.push_back(std::to_string(ToUnixMicros(op.now)));
    out.push_back(std::to_string(op.max));
    return Run::kAny;
  }
  // Stage, place, and the line.
  void AddCursor(std::string_view cursor) {
    const auto space = std::min(cursor.find(' '), cursor.size());
    out.emplace_back(cursor.substr(0, std::min<std::size_t>(1, space)));
    out.emplace_back(space == 0 ? "0" : cursor.substr(1, space - 1));
    out.emplace_back(cursor.substr(std::min(space + 1, cursor.size())));
  }
  Run operator()(const queue_op::Remove& op) {
    Head("remove", op.epoch);
    out.push_back(std::to_string(op.max));
    out.emplace_back(op.scheduled ? "1" : "0");
    AddCursor(op.cursor);
    out.push_back(op.org);
    Arguments lines = op.lines;
    std::ranges::sort(lines);  // the cursor counts on it
    out.push_back(std::to_string(lines.size()));
    std::ranges::move(lines, std::back_inserter(out));
    for (const JobId& id : op.ids) out.emplace_back(id.AsBytes());
    return Run::kAny;
  }
  Run operator()(const queue_op::ListKept& op) {
    Head("list", op.epoch);
    out.push_back(std::to_string(op.max));
    AddCursor(op.cursor);
    out.push_back(op.org);
    return Run::kAny;
  }
};

Result<QueueEntry> ReadEntry(std::string_view line, std::string_view raw) {
  if (raw.size() < kIdBytes) return Fail(ErrorCode::kCorrupt, "redis queue: an entry of {} bytes", raw.size());
  MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(raw.substr(0, kIdBytes)));
  return QueueEntry{
      .id = JobId{id}, .line = std::string{line}, .body = std::string{raw.substr(kIdBytes)}, .run_at = {}, .expires_at = {}};
}

// What a claim of a kept line got: entries, and blocks of them, named from `number` on.
Result<void> ReadKeptClaim(const queue_op::Claim& op, std::span<const redis::Reply> items, std::uint64_t number,
                           RedisFlight& flight, std::vector<QueueEntry>& out) {
  for (const redis::Reply& item : items) {
    MILLRACE_TRY_ASSIGN(std::string_view raw, item.AsString("claim"));
    if (!raw.starts_with(kBlockMark)) {
      MILLRACE_TRY_ASSIGN(out.emplace_back(), ReadEntry(op.line, raw));
      flight.Claimed(out.back().id);
      continue;
    }
    std::vector<JobId> ids;
    for (raw.remove_prefix(std::min(raw.size(), kIdBytes + 2)); !raw.empty();) {
      const std::size_t size =
          raw.size() < 2 ? 0 : static_cast<unsigned char>(raw[0]) * 256U + static_cast<unsigned char>(raw[1]);
      if (size == 0 || raw.size() - 2 < size) return Fail(ErrorCode::kCorrupt, "redis queue: a block that is cut off");
      MILLRACE_TRY_ASSIGN(out.emplace_back(), ReadEntry(op.line, raw.substr(2, size)));
      ids.push_back(out.back().id);
      raw.remove_prefix(2 + size);
    }
    if (ids.empty()) return Fail(ErrorCode::kCorrupt, "redis queue: an empty block");
    flight.ClaimedBlock(RedisFlight::EpochName(op.epoch) + RedisFlight::NumberName(number++), ids);
  }
  return {};
}

Result<std::optional<WallTime>> ReadDue(const redis::Reply& reply) {
  MILLRACE_TRY_ASSIGN(const std::string_view due, reply.AsString("due"));
  if (due.empty()) return std::optional<WallTime>{};
  return std::optional(FromUnixMicros(static_cast<std::int64_t>(std::stod(std::string{due}))));
}

Result<void> ReadLines(std::span<const redis::Reply> items, std::vector<LineCount>& out) {
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    MILLRACE_TRY_ASSIGN(const std::string_view line, items[i].AsString("line"));
    MILLRACE_TRY_ASSIGN(const std::int64_t count, items[i + 1].AsInteger("count"));
    out.push_back({.line = std::string{line}, .count = static_cast<std::uint32_t>(count)});
  }
  return {};
}

Result<QueueReply> ReadTake(std::span<const redis::Reply> items) {
  if (items.size() != 8) return Fail(ErrorCode::kCorrupt, "redis queue: take answered {} items", items.size());
  QueueReply out;
  MILLRACE_TRY_ASSIGN(out.next_due, ReadDue(items[0]));
  MILLRACE_TRY_ASSIGN(const std::int64_t old, items[1].AsInteger("take"));
  out.maybe_old = old != 0;
  MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> lines, items[2].AsArray("take"));
  MILLRACE_TRY(ReadLines(lines, out.kept));
  MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> page, items[3].AsArray("take"));
  for (const redis::Reply& item : page) {
    MILLRACE_TRY_ASSIGN(const std::string_view raw, item.AsString("take"));
    if (raw.size() < 2) return Fail(ErrorCode::kCorrupt, "redis queue: an entry of {} bytes", raw.size());
    const std::size_t n = static_cast<unsigned char>(raw[0]) * 256U + static_cast<unsigned char>(raw[1]);
    if (raw.size() < 2 + n) return Fail(ErrorCode::kCorrupt, "redis queue: an entry of {} bytes", raw.size());
    MILLRACE_TRY_ASSIGN(out.claimed.emplace_back(), ReadEntry(raw.substr(2, n), raw.substr(2 + n)));
  }
  MILLRACE_TRY_ASSIGN(const std::int64_t since, items[4].AsInteger("take"));
  out.unbroken_since = Epoch{static_cast<std::uint32_t>(since)};
  MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> flight, items[5].AsArray("take"));
  for (const redis::Reply& item : flight) {
    MILLRACE_TRY_ASSIGN(const std::string_view raw, item.AsString("take"));
    MILLRACE_TRY_ASSIGN(const Uuid id, Uuid::FromBytes(raw));
    out.in_flight.push_back(JobId{id});
  }
  for (const redis::Reply& item : items.subspan(6)) {  // stage and place
    MILLRACE_TRY_ASSIGN(const std::string_view part, item.AsString("take"));
    out.cursor += part;
  }
  return out;
}

// Of Expire, Remove and ListKept, after their first item: what each line lost, and the entries, each behind its line (a number:
// that of the entry before).
Result<void> ReadLost(std::span<const redis::Reply> items, QueueReply& out) {
  if (items.size() < 2 || items.size() % 2 != 0)
    return Fail(ErrorCode::kCorrupt, "redis queue: expire or remove answered {} items", items.size());
  MILLRACE_TRY_ASSIGN(const std::int64_t lines, items[1].AsInteger("expire"));
  const auto entries = 2 + 2 * static_cast<std::size_t>(lines);
  if (lines < 0 || entries > items.size())
    return Fail(ErrorCode::kCorrupt, "redis queue: expire or remove answered {} lines", lines);
  MILLRACE_TRY(ReadLines(items.subspan(2, entries - 2), out.lost));
  std::string_view line;
  for (std::size_t i = entries; i < items.size(); i += 2) {
    if (items[i].kind != redis::Reply::Kind::kInteger) {
      MILLRACE_TRY_ASSIGN(line, items[i].AsString("expire"));
    }
    MILLRACE_TRY_ASSIGN(const std::string_view raw, items[i + 1].AsString("expire"));
    MILLRACE_TRY_ASSIGN(out.claimed.emplace_back(), ReadEntry(line, raw));
  }
  return {};
}

Result<void> ReadExpired(std::span<const redis::Reply> items, QueueReply& out) {
  MILLRACE_TRY(ReadLost(items, out));
  MILLRACE_TRY_ASSIGN(out.next_due, ReadDue(items[0]));
  return {};
}

Result<void> ReadRemoved(std::span<const redis::Reply> items, QueueReply& out) {
  MILLRACE_TRY(ReadLost(items, out));
  MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> cursor, items[0].AsArray("remove"));
  if (cursor.empty()) return {};
  if (cursor.size() != 3) return Fail(ErrorCode::kCorrupt, "redis queue: a cursor of {} parts", cursor.size());
  MILLRACE_TRY_ASSIGN(const std::string_view stage, cursor[0].AsString("remove"));
  MILLRACE_TRY_ASSIGN(const std::string_view at, cursor[1].AsString("remove"));
  MILLRACE_TRY_ASSIGN(const std::string_view line, cursor[2].AsString("remove"));
  out.cursor = fmt::format("{}{} {}", stage, at, line);
  return {};
}

Result<QueueReply> ReadClaim(const queue_op::Claim& op, const redis::Reply& reply, std::uint64_t first_block,
                             RedisFlight& flight) {
  MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> items, reply.AsArray("claim"));
  QueueReply out;
  out.claimed.reserve(items.size());
  if (IsKeptLine(op.line)) {
    MILLRACE_TRY(ReadKeptClaim(op, items, first_block, flight, out.claimed));
    return out;
  }
  for (const redis::Reply& item : items) {
    MILLRACE_TRY_ASSIGN(const std::string_view raw, item.AsString("claim"));
    MILLRACE_TRY_ASSIGN(out.claimed.emplace_back(), ReadEntry(op.line, raw));
  }
  return out;
}

// The script's own errors, and what it answered otherwise.
Result<std::span<const redis::Reply>> Answered(const redis::Reply& reply) {
  if (reply.kind == redis::Reply::Kind::kError) {
    if (reply.text.starts_with("WIPED")) return Fail(ErrorCode::kWiped, "redis queue: {}: take it anew", reply.text.substr(6));
    if (reply.text.starts_with("STALE"))
      return Fail(ErrorCode::kStale, "redis queue: stored epoch is {}", reply.text.substr(5));
  }
  return reply.AsArray("queue script");
}

Result<QueueReply> ReadReply(const QueueOp& op, std::span<const redis::Reply> items, RedisFlight& flight) {
  if (std::holds_alternative<queue_op::Take>(op)) return ReadTake(items);
  QueueReply out;
  if (std::holds_alternative<queue_op::Promote>(op)) {
    if (items.size() % 2 != 1) return Fail(ErrorCode::kCorrupt, "redis queue: promote answered {} items", items.size());
    MILLRACE_TRY_ASSIGN(out.next_due, ReadDue(items[0]));
    MILLRACE_TRY(ReadLines(items.subspan(1), out.promoted));
  } else if (std::holds_alternative<queue_op::ExpireDue>(op)) {
    MILLRACE_TRY(ReadExpired(items, out));
  } else if (std::holds_alternative<queue_op::Remove>(op)) {
    MILLRACE_TRY(ReadRemoved(items, out));
  } else if (std::holds_alternative<queue_op::ListKept>(op)) {
    MILLRACE_TRY(ReadRemoved(items, out));
    out.listed = std::exchange(out.claimed, {});
  }
  for (const QueueEntry& entry : out.claimed)  // of ExpireDue and Remove
    if (IsKeptLine(entry.line)) flight.Claimed(entry.id);
  return out;
}

std::string InfoField(std::string_view info, std::string_view name) {
  const std::string key = fmt::format("\n{}:", name);
  const auto at = info.find(key);
  if (at == std::string_view::npos) return {};
  const auto start = at + key.size();
  return std::string{info.substr(start, info.find_first_of("\r\n", start) - start)};
}

Result<RedisServerInfo> Inspect(redis::Connection& connection, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const redis::Reply reply, connection.Call({"INFO"}, deadline));
  MILLRACE_TRY_ASSIGN(const std::string_view text, reply.AsString("INFO"));
  RedisServerInfo info{.version = InfoField(text, "redis_version"),
                       .run_id = InfoField(text, "run_id"),
                       .role = InfoField(text, "role"),
                       .maxmemory_policy = InfoField(text, "maxmemory_policy"),
                       .append_only = InfoField(text, "aof_enabled") == "1",
                       .warnings = {}};
  int major = 0, minor = 0;
  const char* end = info.version.data() + info.version.size();
  const auto dot = std::from_chars(info.version.data(), end, major).ptr;
  if (dot != end) std::from_chars(dot + 1, end, minor);
  if (std::pair{major, minor} < std::pair{6, 2})
    return Fail(ErrorCode::kUnsupported, "redis {}: version {} is older than 6.2", connection.peer(), info.version);
  if (!info.maxmemory_policy.empty() && info.maxmemory_policy != "noeviction") {
    if (InfoField(text, "maxmemory") != "0")
      return Fail(ErrorCode::kRejected, "redis {}: maxmemory-policy is '{}', which loses jobs; set it to noeviction",
                  connection.peer(), info.maxmemory_policy);
    info.warnings.push_back("maxmemory-policy is " + info.maxmemory_policy + "; set it to noeviction");
  }
  if (!info.append_only)
    info.warnings.emplace_back("appendonly is off: a restart of Redis loses what the ledger does not hold; set appendonly yes");
  return info;
}

class RedisQueueImpl final : public RedisQueue {
 public:
  RedisQueueImpl(RedisQueueOptions options, redis::Endpoint endpoint)
      : options_(std::move(options)), endpoint_(std::move(endpoint)), clock_(options_.clock ? *options_.clock : system_) {}

  Result<void> Connect(MonoTime deadline) {
    if (connection_ && connection_->open()) return {};
    connection_.reset();
    MILLRACE_TRY_ASSIGN(redis::Connection fresh, redis::Connection::Connect(endpoint_, {.clock = &clock_}, deadline));
    auto info = Inspect(fresh, deadline);
    Result<Scripts> scripts = info ? LoadScripts(fresh, deadline) : std::unexpected(info.error());
    if (!scripts) {
      if (scripts.error().code == ErrorCode::kMaybeApplied)
        scripts.error().code = ErrorCode::kUnavailable;  // nothing was changed
      return std::unexpected(std::move(scripts.error()));
    }
    info_ = std::move(*info);
    scripts_ = std::move(*scripts);
    connection_ = std::move(fresh);
    return {};
  }

  const RedisServerInfo& Describe() const override { return info_; }

  std::vector<Result<QueueReply>> Execute(std::span<const QueueOp> ops) override {
    const MonoTime deadline = clock_.Now() + options_.operation_timeout;
    if (const Result<void> ready = Connect(deadline); !ready) return {ops.size(), std::unexpected(ready.error())};
    std::vector<Result<QueueReply>> results(ops.size(), QueueReply{});
    std::vector<Sent> sent;
    std::set<ShardId> taken_now;
    for (std::size_t i = 0; i < ops.size();) {
      const ShardId shard = ShardIn(ops[i]);
      if (std::holds_alternative<queue_op::Take>(ops[i])) taken_now.insert(shard);
      if (Result<void> allowed = Check(ops[i], shard, taken_now.contains(shard)); !allowed) {
        results[i++] = std::unexpected(std::move(allowed.error()));
        continue;
      }
      Sent& now = sent.emplace_back(Sent{.op = i, .ops = Together(ops.subspan(i)), .first_block = next_block_, .passed = {}});
      AppendOps(ops.subspan(i, now.ops), shard, now.passed);
      i += now.ops;
    }
    if (sent.empty()) return results;
    std::vector<Result<redis::Reply>> replies = connection_->Flush(deadline);
    for (std::size_t k = 0; k < sent.size(); ++k) {
      const ShardId shard = ShardIn(ops[sent[k].op]);
      Read(ops, sent[k], std::move(replies[k]), results);
      if (!std::holds_alternative<queue_op::Take>(ops[sent[k].op])) continue;
      for (std::size_t later = k + 1; later < sent.size(); ++later)  // a Take forgets what was in flight before it
        if (sent[later].passed && ShardIn(ops[sent[later].op]) == shard) sent[later].passed->Apply(flights_[shard]);
    }
    return results;
  }

  Result<QueueDepth> Depth(ShardId shard) override {
    const MonoTime deadline = clock_.Now() + options_.operation_timeout;
    MILLRACE_TRY(Connect(deadline));
    AppendRaw(shard, {"depth", "0", KeysOf(shard).tag}, Run::kAny);
    MILLRACE_TRY_ASSIGN(const redis::Reply reply, std::move(connection_->Flush(deadline).front()));
    MILLRACE_TRY_ASSIGN(const std::span<const redis::Reply> items, reply.AsArray("depth"));
    if (items.size() != 3) return Fail(ErrorCode::kCorrupt, "redis queue: depth answered {} items", items.size());
    const auto at = [&](std::size_t i) { return static_cast<std::uint64_t>(items[i].integer); };
    return QueueDepth{.ready = at(0), .scheduled = at(1), .in_flight = at(2)};
  }

  Result<QueueMemory> Memory() override {
    const MonoTime deadline = clock_.Now() + options_.operation_timeout;
    MILLRACE_TRY(Connect(deadline));
    MILLRACE_TRY_ASSIGN(const redis::Reply reply, connection_->Call({"INFO", "memory"}, deadline));
    MILLRACE_TRY_ASSIGN(const std::string_view text, reply.AsString("INFO"));
    QueueMemory memory;
    for (const auto& [name, out] : {std::pair{"used_memory", &memory.used}, std::pair{"maxmemory", &memory.max}}) {
      const std::string field = InfoField(text, name);
      const auto [end, ec] = std::from_chars(field.data(), field.data() + field.size(), *out);
      if (ec != std::errc{} || end != field.data() + field.size())
        return Fail(ErrorCode::kCorrupt, "redis {}: INFO says {} '{}'", connection_->peer(), name, field);
    }
    return memory;
  }

 private:
  static ShardId ShardIn(const QueueOp& any) {
    return std::visit([](const auto& op) { return op.shard; }, any);
  }
  Result<void> Check(const QueueOp& op, ShardId shard, bool taken_now) const {
    const auto taken = taken_on_.find(shard);
    if (!taken_now && taken != taken_on_.end() && taken->second.empty())
      return Fail(ErrorCode::kWiped, "redis queue: shard {}: what became of an operation is not known: take it anew",
                  shard.value());
    if (!taken_now && taken != taken_on_.end() && taken->second != info_.run_id)
      return Fail(ErrorCode::kWiped, "redis queue: the server of shard {} was restarted or replaced: take it anew",
                  shard.value());
    if (const auto* put = std::get_if<queue_op::Enqueue>(&op)) {
      MILLRACE_TRY(Validate(put->passed));
      return Validate(put->entries);
    }
    if (const auto* back = std::get_if<queue_op::Requeue>(&op)) return Validate(back->entries);
    return {};
  }

  // One run of a script.
  struct Sent {
    std::size_t op = 0, ops = 1;
    std::uint64_t first_block = 0;
    std::optional<Passed> passed;
  };

  // How many of `ops`, the first of them on, are one run: claims of one owner.
  static std::size_t Together(std::span<const QueueOp> ops) {
    const auto* first = std::get_if<queue_op::Claim>(&ops.front());
    std::size_t n = 1;
    for (; first != nullptr && n < std::min(ops.size(), kClaimLinesMax); ++n) {
      const auto* next = std::get_if<queue_op::Claim>(&ops[n]);
      if (next == nullptr || next->shard != first->shard || next->epoch != first->epoch) break;
    }
    return n;
  }

  void AppendOps(std::span<const QueueOp> ops, ShardId shard, std::optional<Passed>& passed) {
    Arguments arguments;
    ToArguments to{arguments, info_.run_id, KeysOf(shard), flights_[shard], next_block_, passed};
    const Run run = std::visit(
        [&]<class Op>(const Op& op) {
          if constexpr (std::is_same_v<Op, queue_op::Claim>)
            return to(ops);
          else
            return to(op);
        },
        ops.front());
    AppendRaw(shard, arguments, run);
    if (passed) passed->Apply(flights_[shard]);  // now, not with the answer: the next operation may take some of it out again
  }

  void Read(std::span<const QueueOp> ops, const Sent& sent, Result<redis::Reply> reply,
            std::vector<Result<QueueReply>>& results) {
    const QueueOp& op = ops[sent.op];
    const ShardId shard = ShardIn(op);
    RedisFlight& flight = flights_[shard];
    const auto items = reply ? Answered(*reply) : std::unexpected(reply.error());
    const auto failed = [&](const Error& error) {
      std::fill_n(results.begin() + static_cast<std::ptrdiff_t>(sent.op), sent.ops, std::unexpected(error));
    };
    if (!items) {
      failed(items.error());
    } else if (!std::holds_alternative<queue_op::Claim>(op)) {
      results[sent.op] = ReadReply(op, *items, flight);
    } else if (items->size() != sent.ops) {
      failed(Fail(ErrorCode::kCorrupt, "redis queue: a claim of {} lines answered {}", sent.ops, items->size()).error());
    } else {
      std::uint64_t block = sent.first_block;
      for (std::size_t i = 0; i < sent.ops; ++i) {
        const auto& claim = std::get<queue_op::Claim>(ops[sent.op + i]);
        results[sent.op + i] = ReadClaim(claim, (*items)[i], block, flight);
        block += claim.max;
      }
    }
    const Result<QueueReply>& result = results[sent.op];
    const bool unknown = !result && result.error().code == ErrorCode::kMaybeApplied;
    if (!result && !unknown && sent.passed) sent.passed->Undo(flight);
    // What waits to be executed was made for a state that may not be the one that is there.
    if (unknown) taken_on_[shard].clear();
    if (const auto* take = std::get_if<queue_op::Take>(&op); take && result) {
      taken_on_[take->shard] = info_.run_id;
      flights_.erase(take->shard);  // what is in flight comes back entry by entry
    }
    if (!result && (result.error().code == ErrorCode::kStale || result.error().code == ErrorCode::kWiped))
      flights_.erase(shard);  // the shard is somebody else's, or to be taken anew
  }

  void AppendRaw(ShardId shard, const Arguments& arguments, Run run) {
    const ShardKeys& keys = KeysOf(shard);
    const std::vector<std::string_view> views(arguments.begin(), arguments.end());
    const auto append = [&](const redis::Script& script, std::initializer_list<std::string_view> names) {
      connection_->AppendScript(script, std::span(names.begin(), names.size()), views);
    };
    switch (run) {
      case Run::kPut:
        return append(scripts_.put, {keys.epoch, keys.lines, keys.flight, keys.kept, keys.stubs, keys.kept_lines});
      case Run::kFinish: return append(scripts_.finish, {keys.epoch, keys.flight, keys.kept});
      case Run::kAny: break;
    }
    append(scripts_.any, {keys.epoch, keys.lines, keys.due, keys.flight, keys.kept_due, keys.kept, keys.server, keys.stubs,
                          keys.body, keys.expiry, keys.kept_body, keys.kept_expiry, keys.kept_lines});
  }

  const ShardKeys& KeysOf(ShardId shard) {
    auto at = keys_.find(shard);
    if (at == keys_.end()) at = keys_.try_emplace(shard, options_.prefix, shard).first;
    return at->second;
  }

  struct Scripts {
    redis::Script any, put, finish;
  };
  static Result<Scripts> LoadScripts(redis::Connection& connection, MonoTime deadline) {
    Scripts scripts;
    const std::string any = fmt::format("{}{}{}", kTakeScript, kQueueScript, kRemoveScript);
    MILLRACE_TRY_ASSIGN(scripts.any, connection.Load(any, deadline));
    MILLRACE_TRY_ASSIGN(scripts.put, connection.Load(std::string{kPutScript}, deadline));
    MILLRACE_TRY_ASSIGN(scripts.finish, connection.Load(std::string{kFinishScript}, deadline));
    return scripts;
  }

  RedisQueueOptions options_;
  redis::Endpoint endpoint_;
  SystemClock system_;
  const Clock& clock_;
  std::optional<redis::Connection> connection_;
  Scripts scripts_;
  std::map<ShardId, ShardKeys> keys_;
  RedisServerInfo info_;
  // The server's run_id when this object took the shard; empty: since then an outcome was not known.
  std::map<ShardId, std::string> taken_on_;
  std::map<ShardId, RedisFlight> flights_;
  std::uint64_t next_block_ = 0;
};

}  // namespace

Result<std::unique_ptr<RedisQueue>> RedisQueue::Open(const RedisQueueOptions& options, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(redis::Endpoint endpoint, redis::ParseEndpoint(options.endpoint));
  auto queue = std::make_unique<RedisQueueImpl>(options, std::move(endpoint));
  MILLRACE_TRY(queue->Connect(deadline));
  for (const std::string& warning : queue->Describe().warnings) LogWarn("redis queue: {}", warning);
  return std::unique_ptr<RedisQueue>(std::move(queue));
}

}  // namespace millrace
