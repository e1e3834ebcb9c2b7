#include "broker/lines.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "common/queue/job_queue.h"
#include "common/wire/codec.h"

namespace millrace {
namespace {

constexpr char kSeparator = '\x1f';

// Of a job that wire::CheckJob let pass: mark, queue, kind, limit key, root, one digit, an org, and what stands between them. A
// client that lists what is in such a line gets its name back as a cursor.
constexpr std::size_t kNameMax = 1 + 3 * kNameBytesMax + wire::kPathBytesMax + 1 + 20 + 5;
static_assert(kPriorityLevels <= 10 && kNameMax + queue_op::kListCursorPlaceMax <= wire::kCursorBytesMax);

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
          .durability = Durability::kLedger,
          .org = spec.org,
          .root = clean(spec.root),
          .kind = clean(spec.kind),
          .limit_key = clean(spec.options.limit_key)};
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

LineRef NameLine(LineKey key) {
  std::string name = key.ToString();
  return std::make_shared<const NamedLine>(std::move(key), std::move(name));
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
