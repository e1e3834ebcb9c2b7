#include "common/ledger/audit_follow.h"

#include "common/base/log.h"

namespace millrace {

std::string WhyNotNext(const AuditHead& last, const AuditRecord& record) {
  if (record.seq != last.seq + 1) return fmt::format("record {} is gone", last.seq + 1);
  if (record.previous != last.hash) return fmt::format("record {} does not continue from record {}", record.seq, last.seq);
  if (record.root != MerkleRoot(record.leaves))
    return fmt::format("the root of record {} is not that of its leaves", record.seq);
  if (record.stored_hash && *record.stored_hash != record.Hash())
    return fmt::format("record {} does not have the hash that is stored with it", record.seq);
  return {};
}

void AuditFollower::Break(AuditWriterId writer, std::string why) {
  if (!broken_.insert(writer).second) return;
  LogError("audit checkpoint: writer {}: {}: nothing more of this chain is signed; see millrace audit verify",
           writer.ToString(), why);
}

namespace {

// The end of what was pruned of a chain, when that is further than `last`: a prune may come between two looks.
std::optional<AuditHead> PrunedMeanwhile(AuditSource& source, const AuditHead& last, MonoTime deadline) {
  const auto chains = source.PrunedChains(deadline);
  if (!chains) return std::nullopt;
  for (const PrunedChain& chain : *chains)
    if (chain.writer == last.writer && chain.through > last.seq)
      return AuditHead{chain.writer, chain.through, chain.through_hash};
  return std::nullopt;
}

}  // namespace

// False: there is more to be read.
bool AuditFollower::Follow(AuditSource& source, const AuditHead& head, std::uint32_t limit, MonoTime deadline,
                           AuditNews& news) {
  AuditHead last{head.writer, 0, {}};
  if (const auto known = known_.find(head.writer); known != known_.end()) last = known->second;
  if (const auto gone = pruned_.find(head.writer); gone != pruned_.end() && gone->second.seq > last.seq) last = gone->second;
  if (head.seq < last.seq) Break(head.writer, fmt::format("its chain ends at record {}, {} was signed", head.seq, last.seq));
  if (head.seq == last.seq && head.hash != last.hash) Break(head.writer, fmt::format("record {} is another one", head.seq));
  while (last.seq < head.seq && !broken_.contains(head.writer)) {
    if (news.records.size() >= limit) return false;
    auto records =
        source.AuditRecords(head.writer, last.seq, limit - static_cast<std::uint32_t>(news.records.size()), deadline);
    if (!records) {
      LogWarn("audit checkpoint: {}", records.error().message);
      return false;
    }
    if (records->empty()) return false;
    for (AuditRecord& record : *records) {
      if (std::string why = WhyNotNext(last, record); !why.empty()) {
        if (const auto through = PrunedMeanwhile(source, last, deadline)) {
          last = *through;
          known_[head.writer] = last;
          break;
        }
        Break(head.writer, std::move(why));
        break;
      }
      last = {record.writer, record.seq, record.Hash()};
      known_[head.writer] = last;
      news.records.push_back(std::move(record));
    }
  }
  return true;
}

Result<AuditNews> AuditFollower::Read(AuditSource& source, std::uint32_t limit, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(std::vector<AuditHead> heads, source.AuditHeads(deadline));
  // Read after the heads: what goes meanwhile is read of no more.
  MILLRACE_TRY_ASSIGN(const std::vector<PrunedChain> chains, source.PrunedChains(deadline));
  pruned_.clear();
  for (const PrunedChain& chain : chains) pruned_[chain.writer] = {chain.writer, chain.through, chain.through_hash};
  std::set<AuditWriterId> present;
  for (const AuditHead& head : heads) present.insert(head.writer);
  std::size_t gone = 0;
  for (const auto& [writer, head] : known_)
    if (!present.contains(writer) && broken_.insert(writer).second) ++gone;
  if (gone != 0) LogError("audit checkpoint: {} chains that were signed are gone; see millrace audit verify", gone);
  open_ = std::move(heads);
  return ReadOn(source, limit, deadline);
}

AuditNews AuditFollower::ReadOn(AuditSource& source, std::uint32_t limit, MonoTime deadline) {
  AuditNews news;
  // One that was reached is not looked at again: what was read of it may be beyond the head that was seen.
  std::erase_if(open_, [&](const AuditHead& head) {
    return broken_.contains(head.writer) || Follow(source, head, limit, deadline, news);
  });
  news.complete = open_.empty();
  for (const auto& [writer, head] : known_) news.heads.push_back(head);
  return news;
}

}  // namespace millrace
