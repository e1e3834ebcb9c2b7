#include "common/ledger/audit_verify.h"

#include <algorithm>
#include <map>
#include <set>

#include "common/crypto/leaf_sums.h"
#include "common/ledger/prune_watch.h"

namespace millrace {
namespace {

std::uint32_t PrefixOf(const Digest& leaf) {
  return std::uint32_t{leaf[0]} << 24 | std::uint32_t{leaf[1]} << 16 | std::uint32_t{leaf[2]} << 8 | leaf[3];
}

std::string Place(AuditWriterId writer, std::uint64_t seq) {
  return fmt::format("record {} of writer {}", static_cast<std::int64_t>(seq), writer.ToString());
}

AuditFinding OfRecord(TamperKind kind, AuditWriterId writer, std::uint64_t seq, std::string explanation) {
  AuditFinding finding;
  finding.kind = kind;
  finding.writer = writer;
  finding.seq = seq;
  finding.explanation = std::move(explanation);
  return finding;
}

AuditFinding OfRow(TamperKind kind, const AuditedRow& row, std::string explanation) {
  AuditFinding finding = OfRecord(kind, row.writer, row.seq, std::move(explanation));
  finding.table = row.table;
  finding.key = row.key;
  finding.index = row.index;
  return finding;
}

using Finding = std::optional<AuditFinding>;

AuditFinding MissingRow(const AuditRecord& record, std::uint32_t index) {
  AuditFinding finding =
      OfRecord(TamperKind::kDelete, record.writer, record.seq,
               fmt::format("row {} of {} is gone (its leaf was {}; written {} by {})", index, Place(record.writer, record.seq),
                           ToHex(record.leaves[index]), ToRfc3339(record.at), record.actor));
  finding.index = index;
  return finding;
}

// Compares the rows of one record, as they are now, with the leaves that were written; `listed`: a row that is there although
// it is listed as pruned, by what was read after the rows.
Finding CompareRows(const AuditRecord& record, const std::vector<AuditedRow>& rows, const PrunedLeaves* pruned,
                    Finding& listed) {
  std::map<std::uint32_t, const AuditedRow*> by_index;
  for (const AuditedRow& row : rows) {
    const auto [first, fresh] = by_index.try_emplace(row.index, &row);
    if (fresh && row.index < record.leaves.size()) continue;
    const bool ours = !fresh && row.index < record.leaves.size() && row.leaf == record.leaves[row.index];
    const AuditedRow& stranger = ours ? *first->second : row;  // of two in one place, the one that was not written
    return OfRow(TamperKind::kInsert, stranger,
                 fmt::format("{} {} was not written by {}, which has {} rows", stranger.table, stranger.key,
                             Place(record.writer, record.seq), record.leaves.size()));
  }
  std::vector<std::uint32_t> different;
  for (std::uint32_t i = 0; i < record.leaves.size(); ++i) {
    const auto row = by_index.find(i);
    if (row == by_index.end() && pruned != nullptr && pruned->Has(i)) continue;
    if (row == by_index.end()) return MissingRow(record, i);
    if (pruned != nullptr && pruned->Has(i) && !listed)
      listed = OfRow(TamperKind::kInsert, *row->second,
                     fmt::format("{} {} of {} is there, although it is listed as pruned", row->second->table, row->second->key,
                                 Place(record.writer, record.seq)));
    if (row->second->leaf != record.leaves[i]) different.push_back(i);
  }
  if (different.empty()) return std::nullopt;
  const AuditedRow& first = *by_index.at(different.front());
  const bool moved = std::ranges::any_of(different, [&](std::uint32_t i) { return record.leaves[i] == first.leaf; });
  if (moved)
    return OfRow(TamperKind::kReorder, first,
                 fmt::format("{} {} is not in its place: rows of {} were exchanged", first.table, first.key,
                             Place(record.writer, record.seq)));
  return OfRow(TamperKind::kEdit, first,
               fmt::format("{} {} was changed after {} wrote it at {} ({})", first.table, first.key,
                           Place(record.writer, record.seq), ToRfc3339(record.at), record.actor));
}

class Verifier {
 public:
  // `last`: the walk goes on behind what a prune may have done, for it may hide something that none can have done.
  Verifier(AuditSource& source, PruneWatch& watch, const CheckpointSet* checkpoints, const AuditVerifyOptions& options,
           bool last)
      : source_(source), watch_(watch), checkpoints_(checkpoints), options_(options), last_(last) {
    if (checkpoints_ != nullptr) times_ = checkpoints_->times;
    std::ranges::sort(times_);
  }

  Result<AuditReport> Run() {
    MILLRACE_TRY_ASSIGN(report_.first_bad, Walk());
    if (last_ && report_.first_bad) excused_.reset();
    if (last_ && excused_) report_.first_bad = excused_;
    report_.ok = !report_.first_bad;
    SayWhatIsUnproven();
    return report_;
  }
  // After Run, of the last look: whether a prune that went on meanwhile can have done all that was found.
  bool MayBeOfAPrune() const { return excused_.has_value(); }

 private:
  using RecordId = std::pair<AuditWriterId, std::uint64_t>;
  struct Chain {
    AuditWriterId writer;
    std::uint64_t seq = 0;
    Digest hash{};
    bool walked = false;  // a record of it was met
  };

  Finding MaybePruned(AuditFinding bad) {
    if (!excused_) excused_ = bad;
    return last_ ? std::nullopt : Finding(std::move(bad));
  }

  Result<Finding> Walk() {
    if (Finding bad = CheckCheckpoints()) return bad;
    MILLRACE_TRY_ASSIGN(AuditTotals totals, source_.Totals(options_.deadline));
    std::vector<AuditHead>& heads = totals.heads;
    std::ranges::sort(heads, {}, &AuditHead::writer);
    std::set<AuditWriterId> seen;
    Finding of_chain;
    for (std::size_t i = 0; i < heads.size() && !of_chain; ++i) {
      if (!seen.insert(heads[i].writer).second) continue;
      ++report_.writers;
      MILLRACE_TRY_ASSIGN(of_chain, WalkChain(heads[i]));
    }
    Result<Finding> rows = CheckRows();  // of records up to the one that is bad
    if (rows && *rows) return rows;
    if (of_chain) return of_chain;
    if (checkpoints_ != nullptr)
      for (const auto& [writer, last] : checkpoints_->last_seq)
        if (!seen.contains(writer)) cut_.emplace_back(writer, 0);
    if (Finding bad = CheckCutChains()) return bad;
    MILLRACE_TRY_ASSIGN(Finding orphan, CheckOrphans());
    if (orphan) return orphan;
    if (!rows) return rows;  // that they could not be read hides nothing that was found
    return CheckTotals(totals);
  }

  // Nothing can be where the walk did not look: all that there was is what was met.
  Finding CheckTotals(const AuditTotals& totals) {
    if (totals.stray) {
      const AuditHead& stray = *totals.stray;
      return OfRecord(TamperKind::kRecordInserted, stray.writer, stray.seq,
                      fmt::format("{} can be of no chain: it was inserted", Place(stray.writer, stray.seq)));
    }
    if (excused_) return std::nullopt;  // what was not met then is no news
    // Who prunes takes away, after the count, what is then not met. There is never less than was met afterwards.
    const auto found = [&](AuditFinding bad, bool fewer_met) { return fewer_met ? MaybePruned(std::move(bad)) : bad; };
    if (totals.records != report_.records)
      return found(OfRecord(TamperKind::kRecordInserted, {}, 0,
                            fmt::format("there are {} audit records, the chains have {}", totals.records, report_.records)),
                   totals.records > report_.records);
    for (const auto& [table, count] : totals.rows) {
      const auto of_table = rows_.find(table);
      const std::uint64_t met = of_table == rows_.end() ? 0 : of_table->second;
      if (count == met) continue;
      AuditFinding finding = OfRecord(count > met ? TamperKind::kInsert : TamperKind::kDelete, {}, 0,
                                      fmt::format("table {} has {} rows, the audit records have {} of it", table, count, met));
      finding.table = table;
      if (Finding bad = found(std::move(finding), count > met)) return bad;
    }
    return std::nullopt;
  }

  Finding CheckCheckpoints() {
    if (checkpoints_ == nullptr) return std::nullopt;
    report_.checkpoints = checkpoints_->checkpoints;
    if (!checkpoints_->problems.empty()) {
      AuditFinding finding;
      finding.kind = TamperKind::kCheckpoint;
      finding.explanation = "checkpoint " + checkpoints_->problems.front();
      return finding;
    }
    if (!checkpoints_->forks.empty()) {
      const auto& [writer, seq] = checkpoints_->forks.front();
      return OfRecord(TamperKind::kForked, writer, seq,
                      fmt::format("two checkpoints sign different contents for {}: its chain was forked", Place(writer, seq)));
    }
    return std::nullopt;
  }

  // Where a chain begins: with its first record, or after those that were pruned. Takes note of what is gone of the others.
  Result<Finding> BeginChain(Chain& chain) {
    leaves_.clear();
    const auto found = watch_.chains().find(chain.writer);
    if (found == watch_.chains().end()) return Finding{};
    PrunedChain pruned = found->second;
    if (const std::string_view problem = ProblemOf(pruned, options_.key); !problem.empty())
      return Finding{Disbelieved(pruned.writer, pruned.through, problem)};
    unsigned_ |= !options_.key.has_value();
    MILLRACE_TRY_ASSIGN(std::vector<PrunedLeaves> leaves, source_.PrunedLeavesOf(chain.writer, options_.deadline));
    if (DigestOf(leaves) != pruned.leaves) {  // or the list is newer than the statement
      MILLRACE_TRY_ASSIGN(PruneWatch::Gone gone, watch_.GoneOf(chain.writer));
      Finding bad;
      if (!gone.problem.empty()) bad = Disbelieved(pruned.writer, pruned.through, gone.problem);
      if (bad && gone.torn) bad = MaybePruned(std::move(*bad));
      if (bad) return bad;
      if (gone.problem.empty()) pruned = std::move(gone.chain), leaves = std::move(gone.leaves);
    }
    if (checkpoints_ != nullptr && pruned.through > 0) {
      const auto pin = checkpoints_->pins.find({chain.writer, pruned.through});
      if (pin != checkpoints_->pins.end() && pin->second.hash != pruned.through_hash)
        return Finding{
            Disbelieved(pruned.writer, pruned.through,
                        fmt::format("ends with a record {} that is not the one a checkpoint signed", pruned.through))};
    }
    report_.pruned_rows += pruned.rows;
    report_.pruned_records += pruned.through;
    chain.seq = pruned.through;
    chain.hash = pruned.through_hash;
    for (PrunedLeaves& record : leaves) leaves_.emplace(record.seq, std::move(record));
    return Finding{};
  }

  static AuditFinding Disbelieved(AuditWriterId writer, std::uint64_t through, std::string_view problem) {
    return OfRecord(TamperKind::kDelete, writer, through + 1,
                    fmt::format("what is said to be pruned of writer {} {}", writer.ToString(), problem));
  }

  // `bad`: a record that is not there. Whether it was pruned after the look began is said by whoever did.
  Result<Finding> GoneRecord(AuditFinding bad, std::uint64_t through) {
    MILLRACE_TRY_ASSIGN(const PruneWatch::Gone gone, watch_.GoneOf(bad.writer));
    return gone.Has(through) || gone.torn ? MaybePruned(std::move(bad)) : std::move(bad);
  }

  Result<Finding> WalkChain(const AuditHead& head) {
    Chain chain{head.writer, 0, {}};
    MILLRACE_TRY_ASSIGN(Finding no_beginning, BeginChain(chain));
    if (no_beginning) return no_beginning;
    FindCover(head.writer);
    std::optional<AuditRecord> waiting;  // one record of look-ahead tells an exchange from a change
    while (true) {
      const std::uint64_t after = waiting ? waiting->seq : chain.seq;
      MILLRACE_TRY_ASSIGN(std::vector<AuditRecord> batch,
                          source_.AuditRecords(head.writer, after, options_.batch_records, options_.deadline));
      if (batch.empty()) break;
      const std::uint64_t last = batch.back().seq;
      std::erase_if(batch, [&](const AuditRecord& record) { return record.seq > head.seq; });  // newer than this look
      for (AuditRecord& record : batch) {
        if (waiting) {
          MILLRACE_TRY_ASSIGN(Finding bad, CheckRecord(chain, *waiting, &record));
          if (bad) return bad;
        }
        waiting = std::move(record);
      }
      if (last >= head.seq) break;
    }
    if (waiting) {
      MILLRACE_TRY_ASSIGN(Finding bad, CheckRecord(chain, *waiting, nullptr));
      if (bad) return bad;
    }
    if (head.seq > chain.seq) {
      MILLRACE_TRY_ASSIGN(Finding bad, GoneRecord(OfRecord(TamperKind::kTruncated, head.writer, chain.seq + 1,
                                                           fmt::format("{} and what follows it are gone: the head of the chain "
                                                                       "is record {}",
                                                                       Place(head.writer, chain.seq + 1), head.seq)),
                                                  head.seq));
      if (bad) return bad;
      chain.seq = head.seq, chain.hash = head.hash;
    }
    if (head.seq == chain.seq && head.hash != chain.hash)
      return OfRecord(TamperKind::kRecordEdited, head.writer, head.seq,
                      fmt::format("{} does not have the hash that the head of its chain holds", Place(head.writer, head.seq)));
    NoteEnd(chain);
    return Finding{};
  }

  void NoteEnd(const Chain& chain) {
    if (checkpoints_ == nullptr) return;
    const auto last = checkpoints_->last_seq.find(chain.writer);
    const std::uint64_t pinned = last == checkpoints_->last_seq.end() ? 0 : last->second;
    if (pinned > chain.seq) cut_.emplace_back(chain.writer, chain.seq);
    if (chain.seq > pinned) report_.unpinned_records += chain.seq - pinned;
  }

  Result<Finding> CheckRecord(Chain& chain, const AuditRecord& record, const AuditRecord* next) {
    ++report_.records;
    newest_ = std::max(newest_, record.at);
    if (record.seq > chain.seq + 1) {
      MILLRACE_TRY_ASSIGN(Finding bad, GoneRecord(Gap(chain, record), record.seq - 1));
      if (!bad && chain.walked) {  // records that are expected have no gaps
        MILLRACE_TRY_ASSIGN(bad, CheckRows());
      }
      if (bad) return bad;
      chain.seq = record.seq - 1, chain.hash = record.previous;
    }
    if (Finding bad = CheckLink(chain, record, next)) return bad;
    const Digest hash = record.Hash();
    MILLRACE_TRY_ASSIGN(Finding other, CheckPin(record, hash));
    if (other) return other;
    const auto pruned = leaves_.find(record.seq);
    sums_.Expect(record, pruned == leaves_.end() ? nullptr : &pruned->second);
    if (sums_.records() >= options_.records_per_scan) {
      MILLRACE_TRY_ASSIGN(Finding bad, CheckRows());
      if (bad) return bad;
    }
    if (Finding bad = CheckTime(record)) return bad;
    chain.seq = record.seq;
    chain.hash = hash;
    chain.walked = true;
    return Finding{};
  }

  // Compares the rows of the records in sums_ with them. No index leads from a record to its rows, because writing it would
  // cost more than all of verification: all rows are read once, and only of a record whose rows differ they are looked up.
  Result<Finding> CheckRows() {
    constexpr int kScansMax = 5;
    std::vector<RecordId> before;
    for (int scan = 1; sums_.records() > 0; ++scan) {
      std::map<std::string, std::uint64_t, std::less<>> met;
      MILLRACE_TRY(source_.VisitRows(
          [&](std::string_view table, std::span<const AuditedLeaf> rows) -> Result<void> {
            // One with a cell that is never written is of no record: the look-up by record, or OrphanRows, names it.
            const auto ours =
                std::ranges::count_if(rows, [&](const AuditedLeaf& row) { return row.leaf != kNoDigest && sums_.Meet(row); });
            met.try_emplace(std::string(table)).first->second += static_cast<std::uint64_t>(ours);
            return {};
          },
          options_.deadline));
      const auto different = sums_.Different();
      if (different.empty()) {
        for (const auto& [table, rows] : met) rows_[table] += rows, report_.rows += rows;
        break;
      }
      MILLRACE_TRY_ASSIGN(Finding bad, CheckDifferent(different, before));
      if (bad) return bad;
      MILLRACE_TRY_ASSIGN(const bool pruned, watch_.Pruned());
      if (pruned && (!last_ || scan == kScansMax)) {
        bad = MaybePruned(OfRecord(TamperKind::kDelete, different.front().first, different.front().second,
                                   "rows were pruned while the ledger was verified"));
        if (bad) return bad;
        break;
      }
      if (scan == kScansMax)
        return Fail(ErrorCode::kUnavailable,
                    "rows were moved each time the tables were read: verify when nothing rewrites them");
      if (pruned) MILLRACE_TRY(ExpectWhatIsLeft(different));
      before = different;
      sums_.ForgetRows();
    }
    sums_.Clear();
    return Finding{};
  }

  // Looks the rows of records up that differ from those that were met. What a prune took differs in one reading, what it did
  // not take in all of them: on the last look those of the reading `before` are looked up too.
  Result<Finding> CheckDifferent(const std::vector<RecordId>& different, const std::vector<RecordId>& before) {
    constexpr std::size_t kLookUpsMax = 20;
    MILLRACE_TRY_ASSIGN(Finding bad, CheckRowsOf(different.front().first, different.front().second));
    if (bad || !last_) return bad;
    const std::set<RecordId> again(before.begin(), before.end());
    std::size_t looked_up = 0;
    for (auto record = different.begin() + 1; record != different.end() && looked_up < kLookUpsMax; ++record) {
      if (!again.contains(*record)) continue;
      ++looked_up;
      MILLRACE_TRY_ASSIGN(bad, CheckRowsOf(record->first, record->second));
      if (bad) return bad;
    }
    return Finding{};
  }

  // Of these records, by what is said to be pruned now.
  Result<void> ExpectWhatIsLeft(const std::vector<RecordId>& different) {
    PruneWatch::Gone gone;
    for (std::size_t i = 0; i < different.size(); ++i) {
      const auto [writer, seq] = different[i];
      if (i == 0 || different[i - 1].first != writer) {
        MILLRACE_TRY_ASSIGN(gone, watch_.GoneOf(writer));
      }
      if (gone.Has(seq)) sums_.ExpectInstead(writer, seq, nullptr, nullptr);
      if (!gone.problem.empty() || gone.Has(seq)) continue;
      MILLRACE_TRY_ASSIGN(const auto records, source_.AuditRecords(writer, seq - 1, 1, options_.deadline));
      if (!records.empty() && records.front().seq == seq) sums_.ExpectInstead(writer, seq, &records.front(), gone.Of(seq));
    }
    return {};
  }

  // What is said to be pruned is read after the rows: a row that a prune took is then listed.
  Result<Finding> CheckRowsOf(AuditWriterId writer, std::uint64_t seq) {
    MILLRACE_TRY_ASSIGN(const auto records, source_.AuditRecords(writer, seq - 1, 1, options_.deadline));
    if (records.empty() || records.front().seq != seq)
      return GoneRecord(OfRecord(TamperKind::kRecordMissing, writer, seq,
                                 fmt::format("{} is gone: it was removed while the ledger was verified", Place(writer, seq))),
                        seq);
    MILLRACE_TRY_ASSIGN(const std::vector<AuditedRow> rows, source_.AuditedRows(writer, seq, options_.deadline));
    MILLRACE_TRY_ASSIGN(const PruneWatch::Gone gone, watch_.GoneOf(writer));
    if (!gone.problem.empty()) {
      AuditFinding bad = Disbelieved(writer, gone.chain.through, gone.problem);
      return gone.torn ? MaybePruned(std::move(bad)) : std::move(bad);
    }
    if (gone.Has(seq)) return Finding{};
    Finding listed;
    if (Finding bad = CompareRows(records.front(), rows, gone.Of(seq), listed)) return bad;
    return listed ? MaybePruned(std::move(*listed)) : Finding{};
  }

  static AuditFinding Gap(const Chain& chain, const AuditRecord& record) {
    return OfRecord(
        TamperKind::kRecordMissing, record.writer, chain.seq + 1,
        fmt::format("{} is gone: the chain continues with record {}", Place(record.writer, chain.seq + 1), record.seq));
  }

  Finding CheckLink(const Chain& chain, const AuditRecord& record, const AuditRecord* next) const {
    const std::string place = Place(record.writer, record.seq);
    if (record.seq != chain.seq + 1) return Gap(chain, record);
    if (record.previous != chain.hash) {
      if (next != nullptr && next->previous == chain.hash)
        return OfRecord(TamperKind::kReorder, record.writer, record.seq,
                        fmt::format("{} and record {} were exchanged", place, next->seq));
      return OfRecord(TamperKind::kRecordEdited, record.writer, record.seq,
                      fmt::format("{} does not continue from the hash of the record before it: one of the two was changed "
                                  "or exchanged",
                                  place));
    }
    if (record.root != MerkleRoot(record.leaves))
      return OfRecord(TamperKind::kRecordEdited, record.writer, record.seq,
                      fmt::format("the root of {} is not the root of its leaves", place));
    if (record.stored_hash && *record.stored_hash != record.Hash())
      return OfRecord(TamperKind::kRecordEdited, record.writer, record.seq,
                      fmt::format("{} is not as it was written: it does not have the hash that is stored with it", place));
    return std::nullopt;
  }

  // From when on each record of the chain was in a checkpoint: in the first one with a head at or behind it.
  void FindCover(AuditWriterId writer) {
    cover_.clear();
    if (checkpoints_ == nullptr) return;
    const auto begin = checkpoints_->pins.lower_bound({writer, 0});
    for (auto pin = begin; pin != checkpoints_->pins.end() && pin->first.first == writer; ++pin)
      cover_.emplace_back(pin->first.second, pin->second.at);
    for (std::size_t i = cover_.size(); i-- > 1;) cover_[i - 1].second = std::min(cover_[i - 1].second, cover_[i].second);
  }

  // A checkpoint holds every record of its time: one that is older than the last checkpoint before its own was not there then.
  Finding CheckTime(const AuditRecord& record) const {
    if (checkpoints_ == nullptr) return std::nullopt;
    const auto cover = std::ranges::lower_bound(cover_, record.seq, {}, &std::pair<std::uint64_t, WallTime>::first);
    const bool covered = cover != cover_.end();
    const auto before = covered ? std::ranges::lower_bound(times_, cover->second) : times_.end();
    if (before == times_.begin()) return std::nullopt;
    const WallTime previous = *std::prev(before);
    if (record.at >= previous - options_.late_grace) return std::nullopt;
    return OfRecord(TamperKind::kLate, record.writer, record.seq,
                    fmt::format("{} says that it was written at {}, but the checkpoint of {} does not hold it{}: it was added "
                                "later, or its writer's clock was wrong",
                                Place(record.writer, record.seq), ToRfc3339(record.at), ToRfc3339(previous),
                                covered ? ", the one of " + ToRfc3339(cover->second) + " does" : ""));
  }

  Result<Finding> CheckPin(const AuditRecord& record, const Digest& hash) const {
    if (checkpoints_ == nullptr) return Finding{};
    const auto found = checkpoints_->pins.find({record.writer, record.seq});
    if (found == checkpoints_->pins.end() || found->second.hash == hash) return Finding{};
    const CheckpointSet::Pin& pin = found->second;
    const std::string place = Place(record.writer, record.seq);
    const std::string signed_at = ToRfc3339(pin.at);
    AuditFinding finding = OfRecord(TamperKind::kRecomputed, record.writer, record.seq, "");
    if (!pin.leaf_prefixes) {
      finding.explanation =
          fmt::format("{} is not the one that the checkpoint of {} signed: the chain was computed anew", place, signed_at);
      return finding;
    }
    const auto& prefixes = *pin.leaf_prefixes;
    std::uint32_t index = 0;
    while (index < prefixes.size() && index < record.leaves.size() && prefixes[index] == PrefixOf(record.leaves[index]))
      ++index;
    if (index == prefixes.size() && index == record.leaves.size()) {
      finding.explanation = fmt::format(
          "{} is not the one that the checkpoint of {} signed, with the same rows: its time, actor or link was changed and the "
          "chain computed anew",
          place, signed_at);
      return finding;
    }
    finding.index = index;
    MILLRACE_TRY_ASSIGN(const std::vector<AuditedRow> rows, source_.AuditedRows(record.writer, record.seq, options_.deadline));
    for (const AuditedRow& row : rows)
      if (row.index == index) finding.table = row.table, finding.key = row.key;
    const std::string row = finding.table.empty() ? "(gone)" : finding.table + " " + finding.key;
    finding.explanation = fmt::format(
        "{} was computed anew: its row {}, {}, is not the one that the checkpoint of {} signed ({} rows then, {} now)", place,
        index, row, signed_at, prefixes.size(), record.leaves.size());
    return finding;
  }

  Finding CheckCutChains() const {
    for (const auto& [writer, last] : cut_) {
      const std::uint64_t signed_last = checkpoints_->last_seq.at(writer);
      const auto pin = checkpoints_->pins.lower_bound({writer, last + 1});
      const WallTime signed_at = pin->second.at;
      if (newest_ > signed_at)
        return OfRecord(TamperKind::kTruncated, writer, last + 1,
                        fmt::format("{} and what follows it are gone: a checkpoint of {} signed the chain up to record {}, and "
                                    "later records of other writers exist",
                                    Place(writer, last + 1), ToRfc3339(signed_at), signed_last));
      return OfRecord(TamperKind::kRestored, writer, last + 1,
                      fmt::format("{} and what follows it are gone: a checkpoint of {} signed the chain up to record {}, and "
                                  "nothing in this database is newer: an older copy was restored, or every tail was cut",
                                  Place(writer, last + 1), ToRfc3339(signed_at), signed_last));
    }
    return std::nullopt;
  }

  Result<Finding> CheckOrphans() {
    MILLRACE_TRY_ASSIGN(const std::vector<AuditedRow> orphans, source_.OrphanRows(1, options_.deadline));
    if (orphans.empty()) return Finding{};
    const AuditedRow& row = orphans.front();
    return Finding{OfRow(TamperKind::kInsert, row,
                         fmt::format("{} {} claims {}, which no chain holds: the row was inserted, or the record removed",
                                     row.table, row.key, Place(row.writer, row.seq)))};
  }

  void SayWhatIsUnproven() {
    if (unsigned_)
      report_.unproven.emplace_back(
          "without the public key, nobody vouches for what is said to be pruned: rows may have been "
          "deleted and declared so");
    if (checkpoints_ == nullptr) {
      report_.unproven.emplace_back("without checkpoints, records removed from the end of a chain cannot be noticed");
      report_.unproven.emplace_back("without checkpoints, a restored older copy of the database cannot be noticed");
      report_.unproven.emplace_back("without checkpoints, a database whose audit trail was computed anew cannot be noticed");
      return;
    }
    if (report_.unpinned_records != 0)
      report_.unproven.push_back(
          fmt::format("{} records are newer than the last checkpoint of their chain: their removal or "
                      "recomputation cannot be noticed yet",
                      report_.unpinned_records));
    for (const std::string& torn : checkpoints_->torn)
      report_.unproven.push_back(fmt::format("checkpoint {} was cut off while it was written", torn));
  }

  AuditSource& source_;
  PruneWatch& watch_;
  const CheckpointSet* checkpoints_;
  const AuditVerifyOptions options_;
  const bool last_;
  AuditReport report_;
  WallTime newest_ = WallTime::min();
  std::map<std::uint64_t, PrunedLeaves> leaves_;  // of the chain that is walked, by seq
  LeafSums sums_;                                 // of records that are as they were written, in the order of the walk
  bool unsigned_ = false;
  Finding excused_;                                           // the first one that a prune can have done
  std::map<std::string, std::uint64_t> rows_;                 // met, by table
  std::vector<WallTime> times_;                               // of all checkpoints, in order
  std::vector<std::pair<std::uint64_t, WallTime>> cover_;     // of the chain that is walked, by seq
  std::vector<std::pair<AuditWriterId, std::uint64_t>> cut_;  // chains that end before their pins, and where
};

}  // namespace

std::string_view Name(TamperKind kind) {
  switch (kind) {
    case TamperKind::kEdit: return "edit";
    case TamperKind::kDelete: return "delete";
    case TamperKind::kInsert: return "insert";
    case TamperKind::kReorder: return "reorder";
    case TamperKind::kRecordEdited: return "record_edited";
    case TamperKind::kRecordMissing: return "record_missing";
    case TamperKind::kTruncated: return "truncated";
    case TamperKind::kRestored: return "restored";
    case TamperKind::kRecomputed: return "recomputed";
    case TamperKind::kForked: return "forked";
    case TamperKind::kCheckpoint: return "checkpoint";
    case TamperKind::kRecordInserted: return "record_inserted";
    case TamperKind::kLate: return "late";
  }
  return "unknown";
}

namespace {

class HeldHistory {
 public:
  HeldHistory(AuditSource& source, bool hold, MonoTime deadline) : source_(source) {
    if (hold) held_ = source_.HoldHistory(deadline).value_or(false);
  }
  HeldHistory(const HeldHistory&) = delete;
  HeldHistory& operator=(const HeldHistory&) = delete;
  ~HeldHistory() {
    if (held_) source_.ReleaseHistory();
  }

 private:
  AuditSource& source_;
  bool held_ = false;
};

// Nothing: a prune disturbed the look, and can have done what was found.
Result<std::optional<AuditReport>> Look(AuditSource& source, PruneWatch& watch, const CheckpointSet* checkpoints,
                                        const AuditVerifyOptions& options, bool last) {
  MILLRACE_TRY(watch.BeginLook());
  Verifier verifier(source, watch, checkpoints, options, last);
  MILLRACE_TRY_ASSIGN(AuditReport report, verifier.Run());
  if (report.ok) return report;
  MILLRACE_TRY_ASSIGN(const bool pruned, watch.Pruned());
  if (!pruned || (last && !verifier.MayBeOfAPrune())) return report;
  return std::nullopt;
}

}  // namespace

Result<AuditReport> VerifyAudit(AuditSource& source, const CheckpointSet* checkpoints, const AuditVerifyOptions& options) {
  // A prune between two reads looks like a deletion: then another look is the one that counts. The first one keeps nobody from
  // pruning, those after it do. No look that a prune disturbed says that something is gone which the prune can have taken.
  constexpr int kLooksMax = 5;
  PruneWatch watch(source, options.key, options.deadline);
  for (int look = 1; look <= kLooksMax; ++look) {
    const HeldHistory held(source, look > 1, options.deadline);
    Result<std::optional<AuditReport>> report = Look(source, watch, checkpoints, options, look == kLooksMax);
    if (report && *report) return std::move(**report);
    if (!report && report.error().code != ErrorCode::kConflict) return std::unexpected(std::move(report.error()));
    // Else rows were pruned, or a prune has locked the tables.
  }
  return Fail(ErrorCode::kUnavailable,
              "rows were pruned during each of {} looks, so that nothing can be said about what is gone: verify when no "
              "prune goes on",
              kLooksMax);
}

}  // namespace millrace
