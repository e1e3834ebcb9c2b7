#include "broker/lines.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/queue/job_queue.h"

namespace millrace {
namespace {

constexpr char kSeparator = '\x1f';

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

bool IsOf(const LineKey& line, const JobSpec& spec, Durability durability) {
  return line.org == spec.org && line.priority == spec.priority && line.durability == durability &&
         line.limit_key == spec.options.limit_key && line.queue == spec.queue && line.kind == spec.kind &&
         line.root == spec.root;
}

std::uint64_t Mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
  return hash ^ (hash >> 32);
}

std::uint64_t Mix(std::uint64_t hash, std::string_view text) {
  hash = Mix(hash, text.size());
  while (!text.empty()) {
    std::uint64_t word = 0;
    const std::size_t n = std::min(sizeof word, text.size());
    std::memcpy(&word, text.data(), n);
    hash = Mix(hash, word);
    text.remove_prefix(n);
  }
  return hash;
}

std::uint64_t HashOf(const JobSpec& spec, Durability durability) {
  const auto numbers = static_cast<std::uint64_t>(spec.org.value()) << 8 |
                       static_cast<std::uint64_t>(spec.priority & 0x7f) << 1 |
                       static_cast<std::uint64_t>(durability == Durability::kRedis);
  return Mix(Mix(Mix(Mix(Mix(0, numbers), spec.options.limit_key), spec.queue), spec.kind), spec.root);
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
          .kind = clean(spec.kind),
          .limit_key = clean(spec.options.limit_key),
          .durability = Durability::kLedger};
}

std::string LineKey::ToString() const {
  return (durability == Durability::kRedis ? std::string(1, kKeptLineMark) : std::string()) +
         fmt::format("{}{s}{}{s}{}{s}{}{s}{}{s}{}", queue, priority, org.value(), root, kind, limit_key,
                     fmt::arg("s", kSeparator));
}

Result<LineKey> LineKey::Parse(std::string_view text) {
  std::array<std::string_view, 6> parts;
  std::size_t n = 0;
  std::string_view rest = text;
  for (; n + 1 < parts.size(); ++n) {
    const auto at = rest.find(kSeparator);
    if (at == std::string_view::npos) break;
    parts[n] = rest.substr(0, at);
    rest.remove_prefix(at + 1);
  }
  parts.back() = rest;
  LineKey key;
  if (IsKeptLine(parts[0])) {
    key.durability = Durability::kRedis;
    parts[0].remove_prefix(1);
  }
  std::int64_t org = 0;
  if (n + 1 != parts.size() || rest.find(kSeparator) != std::string_view::npos || !ParseInt(parts[1], key.priority) ||
      !ParseInt(parts[2], org) || key.priority < 0 || key.priority >= kPriorityLevels)
    return Fail(ErrorCode::kCorrupt, "line '{}' is not queue, priority, org, root, kind, limit key", text);
  key.queue = parts[0];
  key.org = OrgId{org};
  key.root = parts[3];
  key.kind = parts[4];
  key.limit_key = parts[5];
  return key;
}

LineMemo::Cell& LineMemo::CellOf(std::uint64_t hash, const JobSpec& spec, Durability durability) {
  const std::size_t mask = cells_.size() - 1;
  std::size_t at = hash & mask;
  while (cells_[at].line != nullptr && !(cells_[at].hash == hash && IsOf(cells_[at].line->key, spec, durability)))
    at = (at + 1) & mask;
  return cells_[at];
}

void LineMemo::Grow() {
  const std::vector<Cell> old = std::exchange(cells_, std::vector<Cell>(std::max<std::size_t>(64, 2 * cells_.size())));
  const std::size_t mask = cells_.size() - 1;
  for (const Cell& cell : old) {
    if (cell.line == nullptr) continue;
    std::size_t at = cell.hash & mask;
    while (cells_[at].line != nullptr) at = (at + 1) & mask;
    cells_[at] = cell;
  }
}

void LineMemo::Find(const JobSpec& spec, Durability durability) {
  if (last_ != nullptr && IsOf(last_->key, spec, durability)) return;
  if (cells_.empty()) Grow();
  const std::uint64_t hash = HashOf(spec, durability);
  if (const Line* known = CellOf(hash, spec, durability).line; known != nullptr) {
    last_ = known;
    return;
  }
  Line line{.key = LineKey::Of(spec), .name = {}};
  line.key.durability = durability;
  line.name = line.key.ToString();
  if (!IsOf(line.key, spec, durability)) {
    unusual_ = std::move(line);
    last_ = &unusual_;
    return;
  }
  if (known_.size() == kKnownMax) {
    cells_.clear();
    known_.clear();
  }
  if (2 * (known_.size() + 1) > cells_.size()) Grow();
  last_ = &known_.emplace_back(std::move(line));
  CellOf(hash, spec, durability) = {.hash = hash, .line = last_};
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

}  // namespace millrace
