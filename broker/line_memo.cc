#include "broker/line_memo.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace millrace {
namespace {

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

LineMemo::Known& LineMemo::CellOf(std::uint64_t hash, const JobSpec& spec, Durability durability) {
  const std::size_t mask = cells_.size() - 1;
  std::size_t at = hash & mask;
  while (cells_[at].line && !(cells_[at].hash == hash && IsOf(cells_[at].line->key, spec, durability))) at = (at + 1) & mask;
  return cells_[at];
}

void LineMemo::Grow() {
  std::vector<Known> old = std::exchange(cells_, std::vector<Known>(std::max<std::size_t>(64, 2 * cells_.size())));
  const std::size_t mask = cells_.size() - 1;
  for (Known& known : old) {
    if (!known.line) continue;
    std::size_t at = known.hash & mask;
    while (cells_[at].line) at = (at + 1) & mask;
    cells_[at] = std::move(known);
  }
}

const LineRef& LineMemo::Find(const JobSpec& spec, Durability durability) {
  if (last_ != nullptr && IsOf(last_->line->key, spec, durability)) return last_->line;
  if (cells_.empty()) Grow();
  const std::uint64_t hash = HashOf(spec, durability);
  last_ = &CellOf(hash, spec, durability);
  if (last_->line) return last_->line;
  LineKey key = LineKey::Of(spec);
  key.durability = durability;
  Known named{.hash = hash, .line = NameLine(std::move(key))};
  if (!IsOf(named.line->key, spec, durability)) {
    unusual_ = std::move(named);
    last_ = &unusual_;
    return last_->line;
  }
  if (known_ == kKnownMax) {
    cells_.clear();
    known_ = 0;
  }
  if (2 * (known_ + 1) > cells_.size()) Grow();
  last_ = &CellOf(hash, spec, durability);
  *last_ = std::move(named);
  ++known_;
  return last_->line;
}

LineIndex::Line* LineMemo::In(const LineIndex& index, ShardId shard) {
  Known& known = *last_;
  if (known.indexed == nullptr || known.erased != index.erased()) {
    known.indexed = index.Find(shard, known.line->name);
    known.erased = index.erased();
  }
  return known.indexed;
}

}  // namespace millrace
