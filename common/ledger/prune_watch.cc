#include "common/ledger/prune_watch.h"

#include <algorithm>
#include <set>

namespace millrace {

std::string_view ProblemOf(const PrunedChain& chain, const std::optional<PublicKey>& key) {
  if (!key) return {};
  if (chain.signature.empty()) return "is not signed";
  Signature signature{};
  if (chain.signature.size() == signature.size()) std::ranges::copy(chain.signature, signature.begin());
  return VerifySignature(chain.SignedBytes(), signature, *key) ? "" : "has a signature that does not verify";
}

const PrunedLeaves* PruneWatch::Gone::Of(std::uint64_t seq) const {
  if (!problem.empty()) return nullptr;
  const auto found = std::ranges::find(leaves, seq, &PrunedLeaves::seq);
  return found == leaves.end() ? nullptr : &*found;
}

Result<void> PruneWatch::BeginLook() {
  MILLRACE_TRY_ASSIGN(const std::vector<PrunedChain> now, source_.PrunedChains(deadline_));
  chains_.clear();
  for (const PrunedChain& chain : now) {
    chains_.emplace(chain.writer, chain);
    std::uint64_t& highest = highest_[chain.writer];
    highest = std::max(highest, chain.number);
  }
  return {};
}

Result<bool> PruneWatch::Pruned() {
  MILLRACE_TRY_ASSIGN(const std::vector<PrunedChain> now, source_.PrunedChains(deadline_));
  std::vector<const PrunedChain*> fresh;
  std::size_t known = 0;
  for (const PrunedChain& chain : now) {
    const auto then = chains_.find(chain.writer);
    if (then != chains_.end()) ++known;
    if (then == chains_.end() || then->second.number != chain.number) fresh.push_back(&chain);
  }
  if (fresh.empty() || known != chains_.size()) return false;  // no prune takes a statement back
  std::set<AuditWriterId> writers;
  MILLRACE_TRY_ASSIGN(const std::vector<AuditHead> heads, source_.AuditHeads(deadline_));
  for (const AuditHead& head : heads) writers.insert(head.writer);
  return std::ranges::all_of(fresh, [&](const PrunedChain* chain) {
    const auto highest = highest_.find(chain->writer);
    return writers.contains(chain->writer) && (highest == highest_.end() || chain->number > highest->second) &&
           ProblemOf(*chain, key_).empty();
  });
}

Result<PruneWatch::Gone> PruneWatch::GoneOf(AuditWriterId writer) {
  constexpr int kReadsMax = 5;
  Gone gone;
  for (int read = 1;; ++read) {
    MILLRACE_TRY_ASSIGN(const std::vector<PrunedChain> now, source_.PrunedChains(deadline_));
    const auto found = std::ranges::find(now, writer, &PrunedChain::writer);
    const std::uint64_t before = gone.chain.number;
    gone.chain = found == now.end() ? PrunedChain{} : *found;
    gone.problem = found == now.end() ? std::string_view{} : ProblemOf(*found, key_);
    const auto highest = highest_.find(writer);
    if (highest != highest_.end() && gone.chain.number < highest->second) gone.problem = "was taken back";
    if (!gone.problem.empty()) return gone;
    MILLRACE_TRY_ASSIGN(gone.leaves, source_.PrunedLeavesOf(writer, deadline_));
    const bool agree = found == now.end() ? gone.leaves.empty() : DigestOf(gone.leaves) == gone.chain.leaves;
    if (agree) return gone;
    const bool newer = read == 1 || gone.chain.number > before;  // the first time it may have come in between the two reads
    if (newer && read < kReadsMax) continue;
    gone.torn = newer;
    gone.problem = "differs from the rows that are listed as pruned";
    return gone;
  }
}

}  // namespace millrace
