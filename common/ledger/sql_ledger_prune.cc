#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "common/base/log.h"
#include "common/ledger/sql_ledger.h"

// Retention. A step looks at every row that is to go, compares it with the leaf that its audit record has, and only then lets
// it go, in the same transaction as a new, signed PrunedChain row for each chain that loses rows. Records at the beginning of a
// chain of which no row is left go too; the chain's last record stays. See ops/docs/audit.md, Retention.

namespace millrace::ledger {
namespace {

constexpr std::int64_t kPageRows = 2000;
constexpr std::int64_t kStepRowsMax = 20'000;     // jobs, runs or outcomes of a step where rows are deleted one by one
constexpr std::size_t kRecordsPage = 50;          // keys of one statement
constexpr std::size_t kLeafBytesMax = 64u << 20;  // leaves of records that are kept in memory
constexpr Micros kWeek = std::chrono::hours{24 * 7};
// 1970-01-05 was a Monday.
constexpr Micros kFirstMonday = std::chrono::hours{24 * 4};

using RecordKey = std::pair<Uuid, std::int64_t>;

WallTime MondayOf(WallTime t) {
  const std::int64_t week = kWeek.count();
  const std::int64_t since = ToUnixMicros(t) - kFirstMonday.count();
  return FromUnixMicros((since >= 0 ? since / week : (since - week + 1) / week) * week + kFirstMonday.count());
}

Uuid FirstIdOf(WallTime time) {
  Uuid id;
  const auto ms = static_cast<std::uint64_t>(std::max<std::int64_t>(0, ToUnixMicros(time) / 1000));
  for (std::size_t i = 0; i < 6; ++i) id.bytes[i] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
  return id;
}

std::string KeyOf(const TableDef& def, std::string_view alias = "t") {
  return std::string(alias) + "." + std::string(def.columns[0].name);
}

}  // namespace

// What a step takes away.
struct SqlLedger::Going {
  std::map<Uuid, std::map<std::int64_t, PrunedLeaves>> chains;  // writer, seq
  std::vector<std::int64_t> rows;                               // of each of kPrunedTables
  std::map<RecordKey, std::string> leaves;                      // of records that were read lately
  std::size_t leaf_bytes = 0;                                   // of those
  std::vector<PrunedChain> certificates;
  std::vector<Statement> statements;
  std::uint64_t records = 0;
};

// The week of the oldest live thing stays, and every later one.
Result<WallTime> SqlLedger::PruneLimit(WallTime before, std::string& held_by, MonoTime deadline) {
  WallTime limit = MondayOf(before);
  const auto hold = [&](std::string_view what, const Value& id) {
    if (id.null) return;
    const WallTime monday = MondayOf(TimeOf(UuidOf(id)));
    if (monday >= limit) return;
    limit = monday;
    held_by = fmt::format("{} {} is live", what, UuidOf(id).ToString());
  };
  for (const std::string what : {"run", "job"}) {
    MILLRACE_TRY_ASSIGN(const Rows oldest,
                        store_->Run("select " + what + " from live_" + what + " order by " + what + " limit 1", {}, deadline));
    if (!oldest.empty()) hold(what, oldest[0][0]);
  }
  // A job's id may be older than its run's: ids are made by who submits.
  MILLRACE_TRY_ASSIGN(const Rows jobs, store_->Run("select j.job from live_run l join job j on j.run = l.run where j.job < $1 "
                                                   "order by j.job limit 1",
                                                   Params().Id(FirstIdOf(limit)), deadline));
  if (!jobs.empty()) hold("the run of job", jobs[0][0]);
  return limit;
}

// Ids below it go in this step; nil when there is nothing.
Result<Uuid> SqlLedger::EndOfStep(WallTime before, bool& more, MonoTime deadline) {
  const Uuid limit = FirstIdOf(before);
  std::optional<Uuid> oldest, end;
  for (const Table table : kPrunedTables) {
    const TableDef& def = DefOf(table);
    const std::string key(def.columns[0].name), name(def.name);
    const std::string from = "select " + key + " from " + name + " where " + key + " < $1" + std::string(GoesOf(table)) +
                             " order by " + key + " limit 1";
    MILLRACE_TRY_ASSIGN(const Rows first, store_->Run(from, Params().Id(limit), deadline));
    if (first.empty()) continue;
    const Uuid id = UuidOf(first[0][0]);
    if (!oldest || id < *oldest) oldest = id;
    if (store_->DropsWeeks()) continue;
    MILLRACE_TRY_ASSIGN(const Rows next,
                        store_->Run(from + " offset " + std::to_string(kStepRowsMax), Params().Id(limit), deadline));
    if (next.empty()) continue;
    const Uuid at = UuidOf(next[0][0]);
    if (at > id && (!end || at < *end)) end = at;
  }
  if (!oldest) return Uuid{};
  if (store_->DropsWeeks()) end = FirstIdOf(MondayOf(TimeOf(*oldest)) + kWeek);
  more = end && *end < limit;
  return more ? *end : limit;
}

Result<void> SqlLedger::CheckAgainstRecords(const Rows& rows, Table table, Going& going, MonoTime deadline) {
  const std::size_t width = DefOf(table).columns.size();
  const auto key_of = [&](std::size_t i) { return RecordKey{UuidOf(rows[i][width]), rows[i][width + 1].number}; };
  std::set<RecordKey> unknown;
  if (going.leaf_bytes > kLeafBytesMax) going.leaves.clear(), going.leaf_bytes = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!going.leaves.contains(key_of(i))) unknown.insert(key_of(i));
  for (auto it = unknown.begin(); it != unknown.end();) {
    const auto left = static_cast<std::size_t>(std::distance(it, unknown.end()));
    const std::size_t count = left >= kRecordsPage ? kRecordsPage : 1;
    Params params;
    for (std::size_t i = 0; i < count; ++i, ++it) params.Id(it->first).Int(it->second);
    MILLRACE_TRY_ASSIGN(const Rows records,
                        store_->Run("select writer, seq, leaves from audit_record where (writer, seq) in " + ValuesOf(count, 2),
                                    params, deadline));
    for (std::size_t i = 0; i < records.size(); ++i) {
      going.leaves[{UuidOf(records[i][0]), records[i][1].number}] = records[i][2].bytes;
      going.leaf_bytes += records[i][2].bytes.size();
    }
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const RecordKey key = key_of(i);
    const std::int64_t index = rows[i][width + 2].number;
    const auto record = going.leaves.find(key);
    const std::size_t at = static_cast<std::size_t>(std::max<std::int64_t>(index, 0)) * sizeof(Digest);
    const Digest leaf = LeafOf(table, rows[i].first(width));
    const bool same = record != going.leaves.end() && index >= 0 && at + sizeof(Digest) <= record->second.size() &&
                      std::equal(leaf.begin(), leaf.end(), record->second.begin() + static_cast<std::ptrdiff_t>(at),
                                 [](std::uint8_t a, char b) { return a == static_cast<std::uint8_t>(b); });
    if (!same)
      return Fail(ErrorCode::kCorrupt, "{} is not as it was written: nothing is pruned; see millrace audit verify",
                  KeyText(table, rows[i]));
    PrunedLeaves& gone = going.chains[key.first][key.second];
    gone.seq = static_cast<std::uint64_t>(key.second);
    if (gone.Has(static_cast<std::uint32_t>(index)))
      return Fail(ErrorCode::kCorrupt, "{} has the place of another row: nothing is pruned; see millrace audit verify",
                  KeyText(table, rows[i]));
    gone.Add(static_cast<std::uint32_t>(index));
  }
  return {};
}

Result<void> SqlLedger::CollectTable(Table table, const Uuid& end, Going& going, MonoTime deadline) {
  const TableDef& def = DefOf(table);
  const bool two = def.key_columns == 2;  // attempt: job, token
  const std::string key = KeyOf(def), second = two ? "t." + std::string(def.columns[1].name) : "0";
  const std::string sql = "select " + store_->Columns(table, "t") + ", t.audit_writer, t.audit_seq, t.audit_index from " +
                          std::string(def.name) + " t where " + key + " < $1" + std::string(GoesOf(table)) + " and " +
                          (two ? "(" + key + ", " + second + ") > ($2, $3)" : key + " > $2") + " order by " + key +
                          (two ? ", " + second : "") + " limit " + std::to_string(kPageRows);
  Uuid after;
  std::int64_t after_second = -1, count = 0;
  while (true) {
    Params params;
    params.Id(end).Id(after);
    if (two) params.Int(after_second);
    MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql, params, deadline));
    MILLRACE_TRY(CheckAgainstRecords(rows, table, going, deadline));
    count += static_cast<std::int64_t>(rows.size());
    if (rows.size() < static_cast<std::size_t>(kPageRows)) break;
    after = UuidOf(rows[rows.size() - 1][0]);
    if (two) after_second = rows[rows.size() - 1][1].number;
  }
  going.rows.push_back(count);
  return {};
}

// What is gone of a chain after this step: its certificate, the bits of the records that are left, and the records that go.
Result<void> SqlLedger::MergeChain(AuditWriterId writer, Going& going, MonoTime deadline) {
  std::map<std::int64_t, PrunedLeaves>& gone = going.chains[writer.uuid];
  std::set<std::int64_t> touched;
  for (const auto& [seq, leaves] : gone) touched.insert(seq);
  MILLRACE_TRY_ASSIGN(const std::vector<PrunedLeaves> before, PrunedLeavesOf(writer, deadline));
  for (const PrunedLeaves& old : before) {
    PrunedLeaves& now = gone[static_cast<std::int64_t>(old.seq)];
    now.seq = old.seq;
    if (old.bits.size() > now.bits.size()) now.bits.resize(old.bits.size(), '\0');
    for (std::size_t i = 0; i < old.bits.size(); ++i) now.bits[i] = static_cast<char>(now.bits[i] | old.bits[i]);
  }
  PrunedChain chain;
  chain.writer = writer;
  MILLRACE_TRY_ASSIGN(const Rows last, store_->Run("select number, through, through_hash from pruned where writer = $1 "
                                                   "order by number desc limit 1",
                                                   Params().Id(writer.uuid), deadline));
  if (!last.empty()) {
    chain.number = static_cast<std::uint64_t>(last[0][0].number);
    chain.through = static_cast<std::uint64_t>(last[0][1].number);
    std::copy_n(last[0][2].bytes.begin(), std::min(last[0][2].bytes.size(), sizeof(Digest)), chain.through_hash.begin());
  }
  ++chain.number;
  MILLRACE_TRY_ASSIGN(const Rows head,
                      store_->Run("select max(seq) from audit_record where writer = $1", Params().Id(writer.uuid), deadline));
  const auto head_seq = head.empty() ? std::uint64_t{0} : static_cast<std::uint64_t>(head[0][0].number);
  while (!gone.empty() && gone.begin()->second.seq == chain.through + 1 && chain.through + 1 < head_seq) {
    MILLRACE_TRY_ASSIGN(const auto record, AuditRecords(writer, chain.through, 1, deadline));
    if (record.empty() || record.front().seq != chain.through + 1 ||
        gone.begin()->second.Count() != record.front().leaves.size())
      break;
    chain.through = record.front().seq;
    chain.through_hash = record.front().Hash();
    gone.erase(gone.begin());
    ++going.records;
  }
  std::vector<PrunedLeaves> left;
  for (const auto& [seq, leaves] : gone) {
    chain.rows += leaves.Count();
    left.push_back(leaves);
    if (!touched.contains(seq)) continue;
    going.statements.push_back(
        {"insert into pruned_leaf (writer, seq, bits) values ($1, $2, $3) on conflict (writer, seq) do "
         "update set bits = excluded.bits",
         Params().Id(writer.uuid).Int(seq).Bytes(leaves.bits)});
  }
  chain.leaves = DigestOf(left);
  for (const std::string table : {"pruned_leaf", "audit_record"})
    going.statements.push_back({"delete from " + table + " where writer = $1 and seq <= $2",
                                Params().Id(writer.uuid).Int(static_cast<std::int64_t>(chain.through))});
  going.certificates.push_back(std::move(chain));
  return {};
}

// They were never work: what is live holds none of them. Not audited, so that nothing has to be signed. What is in their way
// keeps no history.
void SqlLedger::DropRefused(WallTime before, PruneStep& step, MonoTime deadline) {
  const auto gone = store_->DropRefusedBefore(before, kStepRowsMax, deadline);
  if (!gone) {
    LogWarn("retention: refused rows of before {} are still there: {}", ToRfc3339(before), gone.error().message);
    return;
  }
  step.rows += gone->rows;
  step.more = gone->more;
}

Result<void> SqlLedger::DropHistory(const PruneRequest& request, const Uuid& end, WallTime now, PruneStep& step,
                                    MonoTime deadline) {
  Going going;
  for (const Table table : kPrunedTables) MILLRACE_TRY(CollectTable(table, end, going, deadline));
  std::vector<AuditWriterId> writers;
  for (const auto& [writer, records] : going.chains) writers.push_back(AuditWriterId{writer});
  for (const AuditWriterId writer : writers) MILLRACE_TRY(MergeChain(writer, going, deadline));
  Batch batch;
  const WallTime upto = store_->DropsWeeks() ? TimeOf(end) : step.before;
  for (PrunedChain& chain : going.certificates) {
    chain.before = upto;
    chain.at = now;
    chain.actor = request.actor;
    if (request.sign) chain.signature = request.sign(chain.SignedBytes());
    batch.pruned.push_back(&chain);
  }
  if (!request.despite_verification) batch.others = store_->UnlessHistoryIsHeld();
  std::ranges::move(store_->DropBefore(end, upto, going.rows, std::move(going.statements)), std::back_inserter(batch.others));
  MILLRACE_TRY(Write(batch, deadline));
  for (const std::int64_t rows : going.rows) step.rows += static_cast<std::uint64_t>(rows);
  step.records = going.records;
  return {};
}

Result<PruneStep> SqlLedger::PruneOldest(const PruneRequest& request, MonoTime deadline) {
  PruneStep step;
  if (!request.despite_verification && !request.dry_run) {
    MILLRACE_TRY_ASSIGN(step.waits, store_->HistoryIsHeld(deadline));
    step.more = step.waits;
    if (step.waits) return step;
  }
  MILLRACE_TRY_ASSIGN(const WallTime now, store_->Now(deadline));
  MILLRACE_TRY_ASSIGN(step.before, PruneLimit(std::min(request.before, now), step.held_by, deadline));
  if (request.dry_run) return step;
  MILLRACE_TRY_ASSIGN(const Uuid end, EndOfStep(step.before, step.more, deadline));
  if (!end.IsNil()) MILLRACE_TRY(DropHistory(request, end, now, step, deadline));
  if (!step.more) DropRefused(MondayOf(std::min(request.before, now)), step, deadline);
  return step;
}

Result<std::map<WallTime, std::uint64_t>> SqlLedger::RowsByWeek(const std::string& name, const std::string& key,
                                                                MonoTime deadline) {
  std::map<WallTime, std::uint64_t> weeks;
  Uuid from;
  while (true) {
    MILLRACE_TRY_ASSIGN(const Rows first,
                        store_->Run("select " + key + " from " + name + " where " + key + " >= $1 order by " + key + " limit 1",
                                    Params().Id(from), deadline));
    if (first.empty()) return weeks;
    const Uuid oldest = UuidOf(first[0][0]);
    const WallTime monday = MondayOf(TimeOf(oldest));
    const Uuid next = FirstIdOf(monday + kWeek);
    MILLRACE_TRY_ASSIGN(const Rows count,
                        store_->Run("select count(*) from " + name + " where " + key + " >= $1 and " + key + " < $2",
                                    Params().Id(oldest).Id(next), deadline));
    weeks[monday] = static_cast<std::uint64_t>(count[0][0].number);
    from = next;
  }
}

Result<std::vector<RetainedWeek>> SqlLedger::Retained(MonoTime deadline) {
  struct Counted {
    std::uint64_t runs = 0, specs = 0, outcomes = 0;
    std::uint64_t Rows() const { return runs + specs + outcomes; }
  };
  std::map<WallTime, Counted> weeks;
  const auto count = [&](const std::string& name, const std::string& key, std::uint64_t Counted::* into) -> Result<void> {
    MILLRACE_TRY_ASSIGN(const auto rows, RowsByWeek(name, key, deadline));
    for (const auto& [monday, number] : rows) weeks[monday].*into = number;
    return {};
  };
  MILLRACE_TRY(count("run", "run", &Counted::runs));
  MILLRACE_TRY(count("job", "job", &Counted::specs));
  MILLRACE_TRY(count("outcome", "job", &Counted::outcomes));
  MILLRACE_TRY_ASSIGN(const std::uint64_t bytes, store_->BytesOfHistory(deadline));
  std::uint64_t rows = 0;
  for (const auto& [monday, week] : weeks) rows += week.Rows();
  std::vector<RetainedWeek> all;
  for (const auto& [monday, week] : weeks) {
    const double share = rows == 0 ? 0 : static_cast<double>(week.Rows()) / static_cast<double>(rows);
    all.push_back({.begin = monday,
                   // Of a job of class redis that succeeded at once there is only the outcome, of a live one only the spec.
                   .jobs = std::max(week.specs, week.outcomes),
                   .runs = week.runs,
                   .bytes = static_cast<std::uint64_t>(static_cast<double>(bytes) * share)});
  }
  return all;
}

Result<HistorySize> SqlLedger::SizeOfHistory(std::uint64_t jobs_max, MonoTime deadline) {
  HistorySize size;
  MILLRACE_TRY_ASSIGN(const Rows count, store_->Run("select count(*) from (select 1 from outcome limit $1) x",
                                                    Params().Int(static_cast<std::int64_t>(jobs_max)), deadline));
  size.finished_jobs = static_cast<std::uint64_t>(count[0][0].number);
  MILLRACE_TRY_ASSIGN(size.bytes, store_->BytesOfHistory(deadline));
  return size;
}

Result<std::vector<PrunedChain>> SqlLedger::PrunedChains(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run("select " + store_->Columns(Table::kPruned, "p") +
                                      " from pruned p where p.number = (select "
                                      "max(x.number) from pruned x where x.writer = p.writer) order by p.writer",
                                  {}, deadline));
  std::vector<PrunedChain> all;
  for (std::size_t i = 0; i < rows.size(); ++i) all.push_back(PrunedChainFrom(rows[i]));
  return all;
}

Result<std::vector<PrunedLeaves>> SqlLedger::PrunedLeavesOf(AuditWriterId writer, MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run("select seq, bits from pruned_leaf where writer = $1 order by seq",
                                                   Params().Id(writer.uuid), deadline));
  std::vector<PrunedLeaves> all;
  for (std::size_t i = 0; i < rows.size(); ++i)
    all.push_back({static_cast<std::uint64_t>(rows[i][0].number), std::string(rows[i][1].bytes)});
  return all;
}

}  // namespace millrace::ledger
