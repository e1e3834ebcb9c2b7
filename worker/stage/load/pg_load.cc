#include <algorithm>
#include <utility>

#include "common/base/failpoint.h"
#include "worker/stage/load/pg_copy.h"
#include "worker/stage/load/pg_fence.h"
#include "worker/stage/load/pg_target.h"
#include "worker/stage/load/sinks.h"

namespace millrace::load {
namespace {

constexpr std::int64_t kParallelRowsMin = 200'000;  // below, a second connection costs more than it saves
constexpr int kParallelMax = 4;
constexpr int kLooksMax = 3;                            // at the target, of one attempt
constexpr std::string_view kStateMark = " (SQLSTATE ";  // what the driver ends its messages with

class PgLoad {
 public:
  PgLoad(LoadJob& job, duck::Connection& source, PgFence& fence) : job_(job), source_(source), fence_(fence) {}

  Outcome<Loaded> Run() {
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, fence_.Raise());
    if (stored) return Loaded{std::move(*stored), true};
    if (job_.order.fence_only) return Fenced();
    MILLRACE_TRY(job_.checked);
    MILLRACE_TRY_ASSIGN(target_, DescribeTarget(fence_, job_.spec.table));
    MILLRACE_TRY_ASSIGN(columns_, PlanColumns(target_, job_.columns));
    std::vector<std::string> names, expressions;
    for (PgColumn& c : columns_) {
      c.identifies = std::find(job_.spec.key.begin(), job_.spec.key.end(), c.name) != job_.spec.key.end();
      names.push_back(c.name);
      expressions.push_back(c.expression);
    }
    select_ = CastSql(names, expressions, job_.dataset_sql);
    MILLRACE_FAILPOINT("load.after_look");
    switch (job_.spec.mode) {
      case LoadMode::kAppend: return Append();
      case LoadMode::kReplace: return Replace();
      case LoadMode::kMerge: return Merge();
    }
    return Refuse("invalid_target", "unknown mode");
  }

  // Run failed because somebody else made the table, or its schema, after it was looked at. Another look finds it.
  bool appeared() const { return appeared_; }

 private:
  // With the target's row locked: two first loads would both create the table; the later one waits for that row, and then
  // finds what the other has made.
  Outcome<void> RequireStillMissing() {
    MILLRACE_TRY_ASSIGN(const PgTarget now, DescribeTarget(fence_, job_.spec.table));
    appeared_ = now.exists;
    if (!appeared_) return {};
    return std::unexpected(Failure("destination_conflict", "the table was created by someone else meanwhile", true));
  }

  std::string CopySql(std::string_view table) const {
    return fmt::format("copy {} ({}) from stdin (format binary)", table, ColumnList(columns_));
  }

  Outcome<CopyTotals> Copy(std::string_view table, const std::vector<PgConnection*>& targets) {
    auto totals = CopyRows(source_, select_, columns_, targets, CopySql(table), fence_.clock(), job_.progress);
    if (!totals) return std::unexpected(NameTheRow(Failure(std::move(totals.error()))));
    return *totals;
  }

  // The server says which column; which row can be found again where its rule is known.
  Failure NameTheRow(Failure failure) {
    for (const PgColumn& c : columns_) {
      if (failure.message.find(fmt::format(", column '{}'{}", c.name, kStateMark)) == std::string::npos) continue;
      const std::string name = duck::QuoteName(c.name);
      std::string wrong;
      if (constexpr std::string_view kVarchar = "character varying("; c.pg_type.starts_with(kVarchar))
        wrong = fmt::format("length(rtrim({}, ' ')) > {}", name, std::atoi(c.pg_type.c_str() + kVarchar.size()));
      else if (c.pg_type == "json" || c.pg_type == "jsonb")
        wrong = fmt::format("not json_valid({})", name);
      if (wrong.empty()) return failure;
      auto row = source_.Query(fmt::format("select * from ({}) where {} limit 1", select_, wrong));
      if (row && !row->rows.empty()) failure.message.insert(failure.message.rfind(kStateMark), ", in the row " + LabelOf(*row));
      return failure;
    }
    return failure;
  }
  std::string LabelOf(const duck::Table& row) const {
    RowLabel label(columns_);
    for (std::size_t i = 0; i < columns_.size(); ++i) label.Add(i, row.rows[0][i].value_or("null"));
    return label.text();
  }

  // Inside the publish transaction.
  Outcome<void> CreateTarget(const std::vector<std::string>& key) {
    MILLRACE_TRY(CreateSchema());
    return fence_.Exec(fmt::format("create table {} {}", target_.Quoted(), CreateBody(columns_, key)));
  }
  Outcome<void> CreateSchema() {
    MILLRACE_TRY_ASSIGN(PgResult there,
                        fence_.Query("select 1 from pg_namespace where nspname = $1", PgParams{}.Text(target_.schema)));
    if (there.rows() > 0) return {};
    auto created = fence_.Exec("create schema if not exists " + PgIdentifier(target_.schema));
    if (!created) appeared_ = fence_.connection().last_sqlstate() == "23505";  // two at the same time: it does exist now
    return created;
  }

  Outcome<Loaded> Publish(const Receipt& receipt) {
    MILLRACE_TRY(RequireUntouchedSources(job_));
    MILLRACE_TRY_ASSIGN(Receipt written, fence_.Finish(receipt));
    return Loaded{std::move(written), false};
  }

  static void CountInserted(Receipt& receipt, const CopyTotals& totals) {
    receipt.inserted = totals.rows;
    receipt.rows.loaded = totals.rows;
    receipt.bytes = totals.bytes;
  }

  // The fence's row is locked after the rows are in, so that appends to one target overlap; a stale attempt has then sent
  // its rows for nothing, and the rollback discards them.
  Outcome<Loaded> Append() {
    MILLRACE_TRY(fence_.Begin());
    if (!target_.exists) {
      MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, fence_.LockTarget());
      if (stored) return Loaded{std::move(*stored), true};
      MILLRACE_TRY(RequireStillMissing());
      MILLRACE_TRY(CreateTarget({}));
    }
    MILLRACE_TRY_ASSIGN(const CopyTotals totals, Copy(target_.Quoted(), {&fence_.connection()}));
    MILLRACE_FAILPOINT("load.after_staging");
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, fence_.LockTarget());
    if (stored) return Loaded{std::move(*stored), true};
    Receipt receipt = job_.NewReceipt(target_.exists ? "append: binary COPY in the publish transaction"
                                                     : "append: create table and binary COPY in the publish transaction");
    CountInserted(receipt, totals);
    return Publish(std::move(receipt));
  }

  Outcome<Loaded> Replace() {
    if (!target_.exists) return ReplaceBySwap(nullptr);
    MILLRACE_TRY_ASSIGN(const SwapObstacles obstacles, FindObstacles(fence_, target_));
    if (!obstacles.referenced.empty())
      return Refuse("replace_refused", fmt::format("foreign keys refer to the table ({}); use mode: merge, or drop them",
                                                   fmt::join(obstacles.referenced, ", ")));
    MILLRACE_TRY_ASSIGN(PgResult owner, fence_.Query("select pg_has_role(relowner, 'usage') from pg_class where oid = $1::oid",
                                                     PgParams{}.Int(target_.oid)));
    if (!obstacles.keep_identity.empty()) return ReplaceInPlace(fmt::format("{}", fmt::join(obstacles.keep_identity, ", ")));
    if (!owner.Bool(0, 0)) return ReplaceInPlace("the table belongs to another role");
    return ReplaceBySwap(&target_);
  }

  Outcome<Loaded> ReplaceInPlace(const std::string& reason) {
    MILLRACE_TRY(fence_.Begin());
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, fence_.LockTarget());
    if (stored) return Loaded{std::move(*stored), true};
    // Readers go on and see the old rows; writers wait.
    MILLRACE_TRY(fence_.Exec(fmt::format("lock table {} in share row exclusive mode", target_.Quoted())));
    MILLRACE_TRY_ASSIGN(PgResult deleted, fence_.Query(fmt::format("delete from {}", target_.Quoted())));
    MILLRACE_TRY_ASSIGN(const CopyTotals totals, Copy(target_.Quoted(), {&fence_.connection()}));
    MILLRACE_FAILPOINT("load.after_staging");
    Receipt receipt =
        job_.NewReceipt(fmt::format("replace: delete and binary COPY in the publish transaction (kept: {})", reason));
    receipt.deleted = deleted.affected();
    CountInserted(receipt, totals);
    return Publish(std::move(receipt));
  }

  // Rows into a table that nobody knows yet, over several connections. Each COPY commits by itself.
  Outcome<CopyTotals> ParallelCopy(const std::string& staging, int& connections) {
    connections = job_.rows < kParallelRowsMin ? 1 : std::clamp(job_.order.threads, 1, kParallelMax);
    std::vector<std::unique_ptr<PgConnection>> extra;
    std::vector<PgConnection*> targets{&fence_.connection()};
    for (int i = 1; i < connections; ++i) {
      MILLRACE_TRY_ASSIGN(std::unique_ptr<PgConnection> next, fence_.Connect());
      targets.push_back(next.get());
      extra.push_back(std::move(next));
    }
    return Copy(staging, targets);
  }

  Outcome<Loaded> ReplaceBySwap(const PgTarget* old) {
    const std::string body = old == nullptr ? CreateBody(columns_, {})
                                            : fmt::format(
                                                  "(like {} including defaults including constraints including comments"
                                                  " including storage including compression)",
                                                  old->Quoted());
    MILLRACE_TRY_ASSIGN(const std::string staging, fence_.NewStaging("new", body, false));
    int connections = 1;
    MILLRACE_TRY_ASSIGN(const CopyTotals totals, ParallelCopy(staging, connections));
    MILLRACE_FAILPOINT("load.after_staging");
    SwapPlan swap;
    if (old != nullptr) {
      MILLRACE_TRY_ASSIGN(swap, PlanSwap(fence_, *old, staging, job_.hash));
      for (const std::string& statement : swap.build) MILLRACE_TRY(fence_.Exec(statement));
    }
    MILLRACE_TRY(fence_.Exec("analyze " + staging));
    MILLRACE_TRY(fence_.Begin());
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, fence_.LockTarget());
    if (stored) return Loaded{std::move(*stored), true};
    Receipt receipt = job_.NewReceipt(fmt::format("replace: {} parallel binary COPY into a new table, then {}", connections,
                                                  old == nullptr ? "rename" : "rename swap"));
    if (old != nullptr) {
      MILLRACE_TRY(DropOld(*old, swap));
    } else {
      MILLRACE_TRY(RequireStillMissing());
      MILLRACE_TRY(CreateSchema());
    }
    MILLRACE_TRY(fence_.Exec(fmt::format("alter table {0} rename to {1}; alter table millrace.{1} set schema {2}", staging,
                                         PgIdentifier(target_.table), PgIdentifier(target_.schema))));
    if (old != nullptr) MILLRACE_TRY(RestoreNames(swap));
    CountInserted(receipt, totals);
    return Publish(std::move(receipt));
  }

  // Its rows are not counted: that would keep readers out for as long as a scan takes.
  Outcome<void> DropOld(const PgTarget& old, const SwapPlan& swap) {
    MILLRACE_TRY(fence_.Exec(fmt::format("lock table {} in access exclusive mode", old.Quoted())));
    MILLRACE_TRY_ASSIGN(const PgTarget now, DescribeTarget(fence_, job_.spec.table));
    MILLRACE_TRY_ASSIGN(const std::string fingerprint, Fingerprint(fence_, now));
    MILLRACE_TRY_ASSIGN(const SwapObstacles obstacles, FindObstacles(fence_, now));
    if (now.oid != old.oid || fingerprint != swap.fingerprint || !obstacles.keep_identity.empty() ||
        !obstacles.referenced.empty())
      return std::unexpected(Failure("destination_conflict", "the table's definition changed during the load", true));
    return fence_.Exec("drop table " + old.Quoted());  // RESTRICT: whatever still depends on it refuses the swap
  }

  Outcome<void> RestoreNames(const SwapPlan& swap) {
    for (const std::string& statement : swap.rename) MILLRACE_TRY(fence_.Exec(statement));
    MILLRACE_TRY_ASSIGN(const PgTarget now, DescribeTarget(fence_, job_.spec.table));
    MILLRACE_TRY_ASSIGN(const std::string fingerprint, Fingerprint(fence_, now));
    if (fingerprint == swap.fingerprint) return {};
    return Refuse("replace_refused",
                  "the new table would not equal the old one (indexes, constraints, grants or comments);"
                  " nothing was changed" +
                      FirstDifference(swap.fingerprint, fingerprint));
  }

  static std::string FirstDifference(std::string_view before, std::string_view after) {
    for (std::size_t at = 0; at < before.size();) {
      const auto end = std::min(before.find('\n', at), before.size());
      const std::string_view line = before.substr(at, end - at);
      if (after.find(line) == std::string_view::npos) return fmt::format(": '{}'", line);
      at = end + 1;
    }
    return "";
  }

  Outcome<void> RequireUniqueKey() const {
    if (!target_.exists) return {};
    std::vector<std::string> key = job_.spec.key;
    std::sort(key.begin(), key.end());
    if (std::find(target_.unique_keys.begin(), target_.unique_keys.end(), key) != target_.unique_keys.end()) return {};
    std::string list;
    for (const std::string& k : job_.spec.key) list += (list.empty() ? "" : ", ") + PgIdentifier(k);
    return Refuse("missing_unique_index",
                  fmt::format("merge needs a unique index on exactly the key; run: create unique index on {} ({})",
                              target_.Quoted(), list));
  }

  // "insert ... on conflict", counting what it did: xmax is 0 only in a row version that is new.
  static constexpr std::string_view kCountFresh =
      " returning xmax = 0 as fresh) select count(*) filter (where fresh), count(*) filter (where not fresh) from done";
  std::string MergeSql(std::string_view staging, std::string_view before, std::string_view after) const {
    std::string key, set, old_values, new_values;
    for (const std::string& k : job_.spec.key) key += (key.empty() ? "" : ", ") + PgIdentifier(k);
    for (const PgColumn& c : columns_) {
      if (std::find(job_.spec.key.begin(), job_.spec.key.end(), c.name) != job_.spec.key.end()) continue;
      const std::string name = PgIdentifier(c.name);
      const std::string_view cast = c.pg_type == "json" ? "::text" : "";  // json has no equality
      set += fmt::format("{}{} = excluded.{}", set.empty() ? "" : ", ", name, name);
      old_values += fmt::format("{}t.{}{}", old_values.empty() ? "" : ", ", name, cast);
      new_values += fmt::format("{}excluded.{}{}", new_values.empty() ? "" : ", ", name, cast);
    }
    const std::string list = ColumnList(columns_);
    const std::string action =
        set.empty() ? "nothing" : fmt::format("update set {} where ({}) is distinct from ({})", set, old_values, new_values);
    return fmt::format("{}insert into {} as t ({}) select {} from {} on conflict ({}) do {}{}", before, target_.Quoted(), list,
                       list, staging, key, action, after);
  }

  struct Merged {
    std::int64_t inserted = 0, updated = 0;
  };

  Outcome<Merged> Upsert(std::string_view staging) {
    if (target_.kind == 'p') return UpsertPartitioned(staging);
    MILLRACE_TRY_ASSIGN(PgResult merged, fence_.Query(MergeSql(staging, "with done as (", kCountFresh)));
    return Merged{merged.Int(0, 0), merged.Int(0, 1)};
  }

  // Over t (the target) and s (the staging, whose texts have the default collation).
  std::string SameKey() const {
    std::string same;
    for (const std::string& k : job_.spec.key) {
      const auto found =
          std::find_if(target_.columns.begin(), target_.columns.end(), [&](const PgTarget::Column& c) { return c.name == k; });
      const std::string collate =
          found == target_.columns.end() || found->collation.empty() ? "" : " collate " + found->collation;
      same += fmt::format("{}t.{} = s.{}{}", same.empty() ? "" : " and ", PgIdentifier(k), PgIdentifier(k), collate);
    }
    return same;
  }

  // A trigger that returns null before a row drops it without an error.
  Outcome<void> RefuseDropped(std::string_view staging) {
    MILLRACE_TRY_ASSIGN(PgResult triggers, fence_.Query("select 1 from pg_trigger where tgrelid = $1::oid and not tgisinternal"
                                                        " and tgtype & 3 = 3 and tgenabled <> 'D' limit 1",
                                                        PgParams{}.Int(target_.oid)));
    if (triggers.rows() == 0) return {};
    MILLRACE_TRY_ASSIGN(PgResult dropped,
                        fence_.Query(fmt::format("select count(*) from {} s where not exists (select 1 from {} t where {})",
                                                 staging, target_.Quoted(), SameKey())));
    if (dropped.Int(0, 0) == 0) return {};
    return Refuse("data_rejected", fmt::format("triggers of the table dropped {} rows", dropped.Int(0, 0)));
  }

  // A row that went through a partitioned table has no xmax to tell new from old: the keys that are there are counted before,
  // while nobody else can write.
  Outcome<Merged> UpsertPartitioned(std::string_view staging) {
    MILLRACE_TRY(fence_.Exec(fmt::format("lock table {} in share row exclusive mode", target_.Quoted())));
    MILLRACE_TRY_ASSIGN(PgResult counts, fence_.Query(fmt::format("select count(*), count(*) filter (where exists (select 1"
                                                                  " from {} t where {})) from {} s",
                                                                  target_.Quoted(), SameKey(), staging)));
    MILLRACE_TRY_ASSIGN(PgResult merged, fence_.Query(MergeSql(staging, "", "")));
    const std::int64_t fresh = counts.Int(0, 0) - counts.Int(0, 1);
    return Merged{fresh, merged.affected() - fresh};
  }

  Outcome<Loaded> Merge() {
    MILLRACE_TRY(RequireUniqueKey());
    MILLRACE_TRY_ASSIGN(BatchKeys keys, CheckKeys(job_, source_, select_));
    select_ = keys.select_sql;
    MILLRACE_TRY_ASSIGN(const std::string staging, fence_.NewStaging("stg", CreateBody(columns_, {}), true));
    MILLRACE_TRY_ASSIGN(const CopyTotals totals, Copy(staging, {&fence_.connection()}));
    MILLRACE_TRY(fence_.Exec("analyze " + staging));
    MILLRACE_FAILPOINT("load.after_staging");
    MILLRACE_TRY(fence_.Begin());
    MILLRACE_TRY_ASSIGN(std::optional<Receipt> stored, fence_.LockTarget());
    if (stored) return Loaded{std::move(*stored), true};
    if (!target_.exists) {
      MILLRACE_TRY(RequireStillMissing());
      MILLRACE_TRY(CreateTarget(job_.spec.key));
    }
    auto merged = Upsert(staging);
    if (!merged && fence_.connection().last_sqlstate() == "21000")  // keys that only the destination's collation makes equal
      return Refuse("duplicate_key_in_batch", "the destination finds equal keys in the batch: " + merged.error().message);
    if (!merged) return std::unexpected(std::move(merged.error()));
    if (target_.exists) MILLRACE_TRY(RefuseDropped(staging));
    MILLRACE_TRY(fence_.Exec("drop table " + staging));
    Receipt receipt = job_.NewReceipt(target_.exists ? "merge: unlogged staging, insert on conflict update"
                                                     : "merge: create table, unlogged staging, insert on conflict update");
    receipt.inserted = merged->inserted;
    receipt.updated = merged->updated;
    receipt.unchanged = totals.rows - receipt.inserted - receipt.updated;
    receipt.rows.loaded = totals.rows;
    receipt.rows.deduplicated = keys.deduplicated;
    receipt.bytes = totals.bytes;
    return Publish(std::move(receipt));
  }

  LoadJob& job_;
  duck::Connection& source_;
  PgFence& fence_;
  PgTarget target_;
  bool appeared_ = false;
  std::vector<PgColumn> columns_;
  std::string select_;
};

// The driver ends its messages with the state; last_sqlstate() may by now be that of a ROLLBACK or of another connection.
Failure WithState(Failure failure) {
  const auto mark = failure.message.rfind(kStateMark);
  const std::string state = mark == std::string::npos ? "" : failure.message.substr(mark + kStateMark.size(), 5);
  if (state == "53100" || state == "53200" || state == "53300") {  // disk, memory, connections
    failure.error_class = state == "53100" ? "destination_full" : "destination_unavailable";
    failure.retryable = true;
  }
  // Two rows of the data, or one of them and one of the target; not a race for a name in the catalog.
  if (state == "23505" && failure.message.find("\"pg_") == std::string::npos) {
    failure.error_class = "data_rejected";
    failure.retryable = false;
  }
  return failure;
}

}  // namespace

Outcome<Loaded> LoadIntoPostgres(LoadJob& job, duck::Connection& source, const Clock& clock) {
  for (int look = 1;; ++look) {
    MILLRACE_TRY_ASSIGN(std::unique_ptr<PgFence> fence, PgFence::Open(job, clock));
    PgLoad load(job, source, *fence);
    auto loaded = load.Run();
    if (!loaded) loaded = std::unexpected(fence->Explain(WithState(std::move(loaded.error()))));
    fence->DropOwnStaging();
    if (loaded || !load.appeared() || !loaded.error().retryable || look == kLooksMax) return loaded;
  }
}

}  // namespace millrace::load
