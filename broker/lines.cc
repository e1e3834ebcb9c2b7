#include "broker/lines.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

#include "common/base/check.h"
#include "common/queue/job_queue.h"

namespace millrace {
namespace {

constexpr char kSeparator = '\x1f';
constexpr std::size_t kIdleLinesMax = 1024;

// "/data" reaches "/data" and "/data/in", not "/database".
bool Reaches(std::string_view root, std::string_view path) {
  while (root.size() > 1 && root.ends_with('/')) root.remove_suffix(1);
  if (root == "/") return path.starts_with('/');
  return path.starts_with(root) && (path.size() == root.size() || path[root.size()] == '/');
}

template <class Int>
bool ParseInt(std::string_view text, Int& out) {
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), out);
  return ec == std::errc{} && end == text.data() + text.size();
}

}  // namespace

// Jobs that others wrote into the ledger were not checked by this broker: whatever they say, they get a line.
LineKey LineKey::Of(const JobSpec& spec) {
  const auto clean = [](std::string text) {
    std::ranges::replace(text, kSeparator, '?');
    std::ranges::replace(text, kKeptLineMark, '?');
    return text;
  };
  return {.queue = clean(spec.queue),
          .priority = std::clamp(spec.priority, 0, kPriorityLevels - 1),
          .org = spec.org,
          .root = clean(spec.root),
          .kind = clean(spec.kind)};
}

std::string LineKey::ToString() const {
  return (durability == Durability::kRedis ? std::string(1, kKeptLineMark) : std::string()) +
         fmt::format("{}{s}{}{s}{}{s}{}{s}{}", queue, priority, org.value(), root, kind, fmt::arg("s", kSeparator));
}

Result<LineKey> LineKey::Parse(std::string_view text) {
  std::array<std::string_view, 5> parts;
  std::size_t n = 0;
  std::string_view rest = text;
  for (; n < 4; ++n) {
    const auto at = rest.find(kSeparator);
    if (at == std::string_view::npos) break;
    parts[n] = rest.substr(0, at);
    rest.remove_prefix(at + 1);
  }
  parts[4] = rest;
  LineKey key;
  if (IsKeptLine(parts[0])) {
    key.durability = Durability::kRedis;
    parts[0].remove_prefix(1);
  }
  std::int64_t org = 0;
  if (n != 4 || rest.find(kSeparator) != std::string_view::npos || !ParseInt(parts[1], key.priority) ||
      !ParseInt(parts[2], org) || key.priority < 0 || key.priority >= kPriorityLevels)
    return Fail(ErrorCode::kCorrupt, "line '{}' is not queue, priority, org, root, kind", text);
  key.queue = parts[0];
  key.org = OrgId{org};
  key.root = parts[3];
  key.kind = parts[4];
  return key;
}

void LineMemo::Find(const JobSpec& spec, Durability durability) {
  if (!name_.empty() && asked_.durability == durability && asked_.priority == spec.priority && asked_.org == spec.org &&
      asked_.queue == spec.queue && asked_.kind == spec.kind && asked_.root == spec.root)
    return;
  asked_ = {.queue = spec.queue,
            .priority = spec.priority,
            .org = spec.org,
            .root = spec.root,
            .kind = spec.kind,
            .durability = durability};
  key_ = LineKey::Of(spec);
  key_.durability = durability;
  name_ = key_.ToString();
}

bool WorkerReach::Serves(const LineKey& line) const {
  if (!queues.empty() && std::ranges::find(queues, line.queue) == queues.end()) return false;
  if (!kinds.empty() && std::ranges::find(kinds, line.kind) == kinds.end()) return false;
  return Covers(line.root);
}

bool WorkerReach::Covers(std::string_view root) const {
  if (root.empty() || roots.empty()) return true;
  return std::ranges::any_of(roots, [&](const std::string& mine) { return Reaches(mine, root); });
}

std::size_t LineIndex::RoundOf(const LineKey& key) { return static_cast<std::size_t>(key.priority); }

void LineIndex::Link(Line* line) {
  auto& orgs = rounds_[RoundOf(line->key)].orgs;
  auto org = std::ranges::find(orgs, line->key.org, &Org::org);
  if (org == orgs.end()) org = orgs.insert(orgs.end(), Org{.org = line->key.org, .lines = {}});
  org->lines.push_back(line);
}

void LineIndex::Unlink(Line* line) {
  auto& orgs = rounds_[RoundOf(line->key)].orgs;
  const auto org = std::ranges::find(orgs, line->key.org, &Org::org);
  MILLRACE_CHECK(org != orgs.end(), "line '{}' is in no round", line->name);
  org->lines.remove(line);
  if (org->lines.empty()) orgs.erase(org);
}

void LineIndex::Add(ShardId shard, const std::string& name, std::uint64_t n) {
  if (n == 0) return;
  auto it = lines_.find(std::pair{shard, name});
  if (it == lines_.end()) {
    auto key = LineKey::Parse(name);
    if (!key) return;
    auto line = std::make_unique<Line>();
    line->shard = shard;
    line->name = name;
    line->key = std::move(*key);
    it = lines_.emplace(std::pair{shard, name}, std::move(line)).first;
  }
  Line* line = it->second.get();
  if (line->ready == 0) Link(line);
  line->ready += n;
  total_ready_ += n;
}

LineIndex::Line* LineIndex::Next(const WorkerReach& worker) {
  for (auto& round : rounds_) {
    for (auto org = round.orgs.begin(); org != round.orgs.end(); ++org) {
      const auto line = std::ranges::find_if(org->lines, [&](const Line* l) { return worker.Serves(l->key); });
      if (line == org->lines.end()) continue;
      Line* found = *line;
      org->lines.splice(org->lines.end(), org->lines, line);
      round.orgs.splice(round.orgs.end(), round.orgs, org);
      return found;
    }
  }
  return nullptr;
}

void LineIndex::Take(Line& line, std::uint64_t n) {
  MILLRACE_CHECK(n <= line.ready, "line '{}': {} taken of {}", line.name, n, line.ready);
  line.ready -= n;
  total_ready_ -= n;
  if (line.ready > 0) return;
  line.unserved_since.reset();
  Unlink(&line);
  if (lines_.size() > kIdleLinesMax) lines_.erase(lines_.find(std::pair{line.shard, line.name}));
}

void LineIndex::DropShard(ShardId shard) {
  for (auto it = lines_.begin(); it != lines_.end();) {
    if (it->first.first != shard) {
      ++it;
      continue;
    }
    if (it->second->ready > 0) {
      total_ready_ -= it->second->ready;
      Unlink(it->second.get());
    }
    it = lines_.erase(it);
  }
}

std::uint64_t LineIndex::Ready(ShardId shard) const {
  std::uint64_t sum = 0;
  for (const auto& [key, line] : lines_)
    if (key.first == shard) sum += line->ready;
  return sum;
}

}  // namespace millrace
