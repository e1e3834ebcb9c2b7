#include <algorithm>
#include <map>

#include "common/base/check.h"
#include "common/base/failpoint.h"
#include "common/ledger/postgres_store.h"

// A whole transaction as one pipeline: what is sent in one flush and answered in one round trip.

namespace millrace::ledger {
namespace {

// How each transaction begins. The checks are those of the functions begin_write and assert_holds, which cost several times as
// much to enter and are called only to say what is wrong. The lock comes in a statement before: what it waited for must be
// seen.
constexpr std::string_view kLockWriter =
    "select pg_advisory_xact_lock(writer_lock($1)), set_config('plan_cache_mode', 'force_generic_plan', true), "
    "set_config('enable_seqscan', 'off', true)";
constexpr std::string_view kCheckWriter =
    "select case when exists (select 1 from ledger_writer l where l.writer = $1 and l.session = $2) then '' "
    "else begin_write($1, $2)::text end";
constexpr std::string_view kCheckHolds =
    "select case when o.owner is not distinct from $3 and o.epoch is not distinct from h.epoch then '' "
    "else assert_holds($1, $2, $3)::text end from unnest($1, $2) as h(shard, epoch) left join lateral "
    "(select * from shard_owner s where s.shard = h.shard for share) o on true";

// By ids of one shard: one probe of the index per id, in every plan. With `= any` a plan that was made while the table was
// small reads all of the shard, each time.
constexpr std::string_view kDeleteLiveJobs =
    "delete from live_job where ctid = any (array(select l.ctid from unnest($2) u(id) cross join lateral "
    "(select x.ctid from live_job x where x.shard = $1 and x.job = u.id limit 1) l))";
// The same of many: when none of their range is live (jobs of `durability: redis` never are) that is found with one probe.
constexpr std::string_view kDeleteManyLiveJobs =
    "delete from live_job where ctid = any (array(select l.ctid from unnest($2) u(id) cross join lateral "
    "(select x.ctid from live_job x where x.shard = $1 and x.job = u.id limit 1) l "
    "where (select exists (select 1 from live_job o where o.shard = $1 and o.job between $3 and $4))))";
constexpr std::size_t kManyJobs = 32;
constexpr std::string_view kDeleteLiveRuns =
    "delete from live_run where ctid = any (array(select l.ctid from unnest($2) u(id) cross join lateral "
    "(select x.ctid from live_run x where x.shard = $1 and x.run = u.id limit 1) l))";
// Of most shards the outbox is empty: that is asked once, not for each item.
constexpr std::string_view kDeleteOutbox =
    "delete from outbox where ctid = any (array(select l.ctid from unnest($2) u(id) cross join lateral "
    "(select x.ctid from outbox x where x.shard = $1 and x.item = u.id limit 1) l "
    "where (select exists (select 1 from outbox o where o.shard = $1))))";
// $3: with a cancel request, or only those that have none (one that comes meanwhile changes the row: it is looked at again).
constexpr std::string_view kDeleteOutboxDone =
    "delete from outbox where ctid = any (array(select l.ctid from unnest($1) s(shard) cross join unnest($2) u(id) "
    "cross join lateral (select x.ctid from outbox x where x.shard = s.shard and x.item = u.id limit 1) l)) "
    "and cancel_requested <= $3";

// Where items are noted. They are new, as the run or job of the same transaction is: a key that exists is that row's, and stops
// the transaction there.
struct ItemTable {
  std::string_view one, one_org, many_orgs;
};
constexpr ItemTable kLiveRun{"insert into live_run (run, org, shard) values ($1, $2, $3)",
                             "insert into live_run (run, org, shard) select unnest($1), $2, $3",
                             "insert into live_run (run, org, shard) select unnest($1), unnest($2), unnest($3)"};
constexpr ItemTable kLiveJob{"insert into live_job (job, org, shard) values ($1, $2, $3)",
                             "insert into live_job (job, org, shard) select unnest($1), $2, $3",
                             "insert into live_job (job, org, shard) select unnest($1), unnest($2), unnest($3)"};
constexpr ItemTable kOutboxRun{"insert into outbox (item, org, shard, is_run) values ($1, $2, $3, 1)",
                               "insert into outbox (item, org, shard, is_run) select unnest($1), $2, $3, 1",
                               "insert into outbox (item, org, shard, is_run) select unnest($1), unnest($2), unnest($3), 1"};
constexpr ItemTable kOutboxJob{"insert into outbox (item, org, shard, is_run) values ($1, $2, $3, 0)",
                               "insert into outbox (item, org, shard, is_run) select unnest($1), $2, $3, 0",
                               "insert into outbox (item, org, shard, is_run) select unnest($1), unnest($2), unnest($3), 0"};

void AddItems(const ItemTable& table, const std::vector<Item>& items, std::vector<PgStatement>& all) {
  if (items.empty()) return;
  if (items.size() == 1) {
    const Item& item = items.front();
    all.push_back({table.one, PgParams().Id(item.id).Int(item.org.value()).Int(item.shard.value())});
    return;
  }
  std::vector<Uuid> ids;
  std::vector<std::int64_t> orgs, shards;
  for (const Item& item : items) {
    ids.push_back(item.id);
    orgs.push_back(item.org.value());
    shards.push_back(item.shard.value());
  }
  const bool one = std::ranges::all_of(orgs, [&](std::int64_t org) { return org == orgs.front(); });  // and so of one shard
  if (one)
    all.push_back({table.one_org, PgParams().IdArray(ids).Int(orgs.front()).Int(shards.front())});
  else
    all.push_back({table.many_orgs, PgParams().IdArray(ids).IntArray(orgs).IntArray(shards)});
}

std::map<ShardId, std::vector<Uuid>> ByShard(const std::vector<Item>& items) {
  std::map<ShardId, std::vector<Uuid>> all;
  for (const Item& item : items) all[item.shard].push_back(item.id);
  return all;
}

std::string_view View(const Digest& d) { return {reinterpret_cast<const char*>(d.data()), d.size()}; }

PgParams RecordParams(const AuditRecord& r) {
  std::string leaves;
  leaves.reserve(r.leaves.size() * sizeof(Digest));
  for (const Digest& leaf : r.leaves) leaves += View(leaf);
  const Digest hash = r.Hash();
  return PgParams()
      .Id(r.writer.uuid)
      .Int(static_cast<std::int64_t>(r.seq))
      .Bytes(View(r.previous))
      .Time(r.at)
      .Text(r.actor)
      .Bytes(leaves)
      .Bytes(View(r.root))
      .Bytes(View(hash));
}

}  // namespace

std::string InsertHead(Table table) {
  const TableDef& def = DefOf(table);
  std::string sql = "insert into " + std::string(def.name) + " (";
  for (const Column& c : def.columns) sql += std::string(c.name) + ", ";
  return sql + "audit_writer, audit_seq, audit_index) ";
}

std::string PostgresStore::Columns(Table table, std::string_view alias) const {
  std::string list;
  for (const Column& c : DefOf(table).columns) {
    if (!list.empty()) list += ", ";
    const std::string name = std::string(alias) + "." + std::string(c.name);
    list +=
        c.type != ColumnType::kUuidList
            ? name
            : fmt::format("case when {0} = '{{}}' then '' else decode(replace(array_to_string({0}, ''), '-', ''), 'hex') end",
                          name);
  }
  return list;
}

std::vector<Statement> PostgresStore::DropBefore(const Uuid&, WallTime before, std::span<const std::int64_t> expected,
                                                 std::vector<Statement> first) const {
  std::string sql = "select prune_before($1, array[";
  Params params;
  params.Time(before);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    sql += fmt::format("{}${}", i > 0 ? ", " : "", i + 2);
    params.Int(expected[i]);
  }
  first.insert(first.begin(), {"set local statement_timeout = 0", {}});
  first.push_back({sql + "])", std::move(params)});
  return first;
}

// The columns' types see to the rest. A list of ids may hide nulls, dimensions and bounds from the text that Columns makes.
std::string PostgresStore::Sound(Table table, std::string_view alias) const {
  std::string sql = "true";
  for (const Column& c : DefOf(table).columns)
    if (c.type == ColumnType::kUuidList)
      sql += fmt::format(
          " and coalesce(array_ndims({0}), 1) = 1 and coalesce(array_lower({0}, 1), 1) = 1 and "
          "array_to_string({0}, '', '*') = array_to_string({0}, '')",
          fmt::format("{}.{}", alias, c.name));
  return sql;
}

std::vector<PgStatement> PostgresStore::Statements(const WriteSet& set, const AuditRecord* record) {
  std::vector<PgStatement> all;
  all.push_back({"begin", {}});
  all.push_back({kLockWriter, PgParams().Id(options_.writer.uuid)});
  all.push_back({kCheckWriter, PgParams().Id(options_.writer.uuid).Int(*session_)});
  std::vector<std::int64_t> shards, epochs;
  for (const ShardHold& hold : set.holds) {
    shards.push_back(hold.shard.value());
    epochs.push_back(hold.epoch.value());
  }
  if (set.owner && !MILLRACE_MUTANT("mutant.no_epoch"))
    all.push_back({kCheckHolds, PgParams().IntArray(shards).IntArray(epochs).Id(set.owner->uuid)});
  for (const Table table : kTables) {
    const auto& rows = set.tables[static_cast<std::size_t>(table)];
    if (!rows.index.empty()) all.push_back(inserter_.Insert(table, rows, *record));
  }
  AddItems(kLiveRun, set.live_runs, all);
  AddItems(kLiveJob, set.live_jobs, all);
  AddItems(kOutboxRun, set.outbox_runs, all);
  AddItems(kOutboxJob, set.outbox_jobs, all);
  for (const ItemBatch& row : set.outbox_batches)
    all.push_back({"insert into outbox_batch (batch, shard, runs) values ($1, $2, $3)",
                   PgParams().Id(row.id).Int(row.shard.value()).Bytes(row.runs)});
  for (const auto& [shard, ids] : ByShard(set.ended_runs)) {
    all.push_back({kDeleteLiveRuns, PgParams().Int(shard.value()).IdArray(ids)});
    all.push_back({kDeleteOutbox, PgParams().Int(shard.value()).IdArray(ids)});
  }
  for (const auto& [shard, ids] : ByShard(set.ended_jobs)) {
    PgParams ended = std::move(PgParams().Int(shard.value()).IdArray(ids));
    if (ids.size() < kManyJobs) {
      all.push_back({kDeleteLiveJobs, std::move(ended)});
    } else {
      const auto [first, last] = std::ranges::minmax(ids);
      all.push_back({kDeleteManyLiveJobs, std::move(ended.Id(first).Id(last))});
    }
    all.push_back({kDeleteOutbox, PgParams().Int(shard.value()).IdArray(ids)});
  }
  if (!set.outbox_done_batches.empty())
    all.push_back({"delete from outbox_batch where shard = any($1) and batch = any($2)",
                   PgParams().IntArray(shards).IdArray(set.outbox_done_batches)});
  if (!set.outbox_done.empty()) all.push_back({kDeleteOutboxDone, PgParams().IntArray(shards).IdArray(set.outbox_done).Int(0)});
  if (!set.outbox_done_cancels.empty())
    all.push_back({kDeleteOutboxDone, PgParams().IntArray(shards).IdArray(set.outbox_done_cancels).Int(1)});
  if (!set.others.empty()) {  // kLockWriter's choices are for the statements above
    all.push_back({"set local plan_cache_mode to default", {}});
    all.push_back({"set local enable_seqscan to default", {}});
  }
  for (const Statement& s : set.others) all.push_back({s.sql, ToPg(s.params)});
  if (record != nullptr)
    all.push_back(
        {"insert into audit_record (writer, seq, previous, at, actor, leaves, root, hash) values ($1, $2, $3, $4, $5, $6, $7, "
         "$8)",
         RecordParams(*record)});
  all.push_back({"commit", {}});
  return all;
}

}  // namespace millrace::ledger
