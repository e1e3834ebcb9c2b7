#include "common/crypto/leaf_sums.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"

namespace millrace {

LeafSums::LeafSums() {
  static const bool ready = sodium_init() >= 0;
  MILLRACE_CHECK(ready, "libsodium does not start");
  static_assert(sizeof key_ == crypto_shorthash_KEYBYTES);
  randombytes_buf(key_.data(), key_.size());
}

std::uint64_t LeafSums::Summand(std::uint32_t index, const Digest& leaf) const {
  std::array<unsigned char, sizeof index + sizeof(Digest)> bytes;
  std::memcpy(bytes.data(), &index, sizeof index);
  std::ranges::copy(leaf, bytes.begin() + sizeof index);
  std::uint64_t sum = 0;
  static_assert(sizeof sum == crypto_shorthash_BYTES);
  crypto_shorthash(reinterpret_cast<unsigned char*>(&sum), bytes.data(), bytes.size(), key_.data());
  return sum;
}

void LeafSums::Expect(const AuditRecord& record, const PrunedLeaves* pruned) {
  if (chains_.empty() || chains_.back().writer != record.writer) {
    const bool fresh = place_.emplace(record.writer, chains_.size()).second;
    MILLRACE_CHECK(fresh, "the records of writer {} come in two pieces", record.writer.ToString());
    chains_.push_back({record.writer, record.seq, {}});
  }
  Chain& chain = chains_.back();
  MILLRACE_CHECK(record.seq == chain.first + chain.records.size(), "record {} of writer {} is out of order", record.seq,
                 record.writer.ToString());
  chain.records.push_back({SumOf(record, pruned), 0});
  ++records_;
}

std::uint64_t LeafSums::SumOf(const AuditRecord& record, const PrunedLeaves* pruned) const {
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < record.leaves.size(); ++i)
    if (pruned == nullptr || !pruned->Has(i)) sum += Summand(i, record.leaves[i]);
  return sum;
}

void LeafSums::ExpectInstead(AuditWriterId writer, std::uint64_t seq, const AuditRecord* record, const PrunedLeaves* pruned) {
  const auto found = place_.find(writer);
  if (found == place_.end()) return;
  Chain& chain = chains_[found->second];
  if (seq < chain.first || seq - chain.first >= chain.records.size()) return;
  chain.records[seq - chain.first].expected = record == nullptr ? 0 : SumOf(*record, pruned);
}

std::vector<std::pair<AuditWriterId, std::uint64_t>> LeafSums::Different() const {
  std::vector<std::pair<AuditWriterId, std::uint64_t>> all;
  for (const Chain& chain : chains_)
    for (std::size_t i = 0; i < chain.records.size(); ++i)
      if (chain.records[i].expected != chain.records[i].met) all.emplace_back(chain.writer, chain.first + i);
  return all;
}

bool LeafSums::Meet(const AuditedLeaf& row) {
  if (last_ >= chains_.size() || chains_[last_].writer != row.writer) {
    const auto found = place_.find(row.writer);
    if (found == place_.end()) return false;
    last_ = found->second;
  }
  Chain& chain = chains_[last_];
  if (row.seq < chain.first || row.seq - chain.first >= chain.records.size()) return false;
  chain.records[row.seq - chain.first].met += Summand(row.index, row.leaf);
  return true;
}

std::optional<std::pair<AuditWriterId, std::uint64_t>> LeafSums::FirstDifferent() const {
  for (const Chain& chain : chains_)
    for (std::size_t i = 0; i < chain.records.size(); ++i)
      if (chain.records[i].expected != chain.records[i].met) return std::pair{chain.writer, chain.first + i};
  return std::nullopt;
}

void LeafSums::ForgetRows() {
  for (Chain& chain : chains_)
    for (Sums& sums : chain.records) sums.met = 0;
}

void LeafSums::Clear() {
  chains_.clear();
  place_.clear();
  last_ = records_ = 0;
}

}  // namespace millrace
