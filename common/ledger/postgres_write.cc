#include "common/base/check.h"
#include "common/base/failpoint.h"
#include "common/ledger/postgres_store.h"

// A whole transaction as one pipeline: what is sent in one flush and answered in one round trip.

namespace millrace::ledger {
namespace {

PgParams::Element ElementOf(ColumnType type) {
  switch (type) {
    case ColumnType::kInt: return PgParams::Element::kInt;
    case ColumnType::kBool: return PgParams::Element::kBool;
    case ColumnType::kText: return PgParams::Element::kText;
    case ColumnType::kBytes: return PgParams::Element::kBytes;
    case ColumnType::kUuid: return PgParams::Element::kId;
    case ColumnType::kTime: return PgParams::Element::kTime;
    case ColumnType::kUuidList: return PgParams::Element::kText;
  }
  MILLRACE_CHECK(false, "column type {}", static_cast<int>(type));
}

// unnest flattens arrays of arrays, so a list of ids travels as its text form.
std::string UuidListText(std::string_view bytes) {
  std::string text = "{";
  for (std::size_t at = 0; at + 16 <= bytes.size(); at += 16) {
    if (at > 0) text += ',';
    text += Uuid::FromBytes(bytes.substr(at, 16))->ToString();
  }
  return text + "}";
}

void AddElement(PgParams& params, ColumnType type, const Value& value) {
  if (value.null) {
    params.AddNull();
    return;
  }
  switch (type) {
    case ColumnType::kInt: params.AddInt(value.number); break;
    case ColumnType::kBool: params.AddBool(value.number != 0); break;
    case ColumnType::kTime: params.AddTime(FromUnixMicros(value.number)); break;
    case ColumnType::kUuidList: params.AddBytes(UuidListText(value.bytes)); break;
    default: params.AddBytes(value.bytes); break;
  }
}

std::string MakeInsert(Table table) {
  const TableDef& def = DefOf(table);
  const std::size_t n = def.columns.size();
  std::string list, arrays, names;
  for (std::size_t i = 0; i < n; ++i) {
    list += "u.c" + std::to_string(i) + (def.columns[i].type == ColumnType::kUuidList ? "::uuid[], " : ", ");
    arrays += "$" + std::to_string(i + 1) + ", ";
    names += "c" + std::to_string(i) + ", ";
  }
  const std::string index = std::to_string(n + 1), writer = std::to_string(n + 2), seq = std::to_string(n + 3);
  return InsertHead(table) + "select " + list + "$" + writer + ", $" + seq + ", u.x from unnest(" + arrays + "$" + index +
         ") as u(" + names + "x)";
}

const std::string& InsertSql(Table table) {
  static const std::array<std::string, kTableCount> kSql = [] {
    std::array<std::string, kTableCount> all;
    for (const Table t : kTables) all[static_cast<std::size_t>(t)] = MakeInsert(t);
    return all;
  }();
  return kSql[static_cast<std::size_t>(table)];
}

PgParams InsertParams(Table table, const WriteSet::TableRows& rows, const AuditRecord& record) {
  const TableDef& def = DefOf(table);
  const std::size_t width = def.columns.size(), count = rows.index.size();
  PgParams params;
  for (std::size_t c = 0; c < width; ++c) {
    params.BeginArray(ElementOf(def.columns[c].type), count);
    for (std::size_t r = 0; r < count; ++r) AddElement(params, def.columns[c].type, rows.cells[r * width + c]);
    params.EndArray();
  }
  params.IntArray(rows.index).Id(record.writer.uuid).Int(static_cast<std::int64_t>(record.seq));
  return params;
}

PgParams ItemParams(const std::vector<Item>& items) {
  std::vector<Uuid> ids;
  std::vector<std::int64_t> orgs, shards;
  for (const Item& item : items) {
    ids.push_back(item.id);
    orgs.push_back(item.org.value());
    shards.push_back(item.shard.value());
  }
  return PgParams().IdArray(ids).IntArray(orgs).IntArray(shards);
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

PgParams ToPg(const Params& params) {
  PgParams out;
  for (const Param& p : params.all()) {
    if (p.kind == Param::Kind::kInt)
      out.Int(p.number);
    else if (p.kind == Param::Kind::kText)
      out.Text(p.bytes);
    else if (p.kind == Param::Kind::kBytes)
      out.Bytes(p.bytes);
    else if (p.kind == Param::Kind::kTime)
      out.Time(FromUnixMicros(p.number));
    else if (p.kind == Param::Kind::kIds)
      out.IdArray(p.ids);
    else if (p.kind == Param::Kind::kTexts)
      out.TextArray(std::vector<std::string_view>(p.texts.begin(), p.texts.end()));
    else
      out.NullableId(p.null ? std::nullopt : std::optional<Uuid>(*Uuid::FromBytes(p.bytes)));
  }
  return out;
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
    list += c.type == ColumnType::kUuidList ? "decode(replace(array_to_string(" + name + ", ''), '-', ''), 'hex')" : name;
  }
  return list;
}

std::vector<Statement> PostgresStore::DropBefore(const Uuid&, WallTime before, std::span<const std::int64_t> expected) const {
  std::string sql = "select prune_before($1, array[";
  Params params;
  params.Time(before);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    sql += fmt::format("{}${}", i > 0 ? ", " : "", i + 2);
    params.Int(expected[i]);
  }
  return {{"set local statement_timeout = 0", {}}, {sql + "])", std::move(params)}};
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

std::vector<PgStatement> PostgresStore::Statements(const WriteSet& set, const AuditRecord* record) const {
  std::vector<PgStatement> all;
  all.push_back({"begin", {}});
  all.push_back({"select begin_write($1, $2)", PgParams().Id(options_.writer.uuid).Int(*session_)});
  if (set.owner && !MILLRACE_MUTANT("mutant.no_epoch")) {
    std::vector<std::int64_t> shards, epochs;
    for (const ShardHold& hold : set.holds) {
      shards.push_back(hold.shard.value());
      epochs.push_back(hold.epoch.value());
    }
    all.push_back({"select assert_holds($1, $2, $3)", PgParams().IntArray(shards).IntArray(epochs).Id(set.owner->uuid)});
  }
  for (const Table table : kTables) {
    const auto& rows = set.tables[static_cast<std::size_t>(table)];
    if (!rows.index.empty()) all.push_back({InsertSql(table), InsertParams(table, rows, *record)});
  }
  if (!set.live_runs.empty())
    all.push_back({"insert into live_run (run, org, shard) select * from unnest($1, $2, $3) on conflict do nothing",
                   ItemParams(set.live_runs)});
  if (!set.live_jobs.empty())
    all.push_back({"insert into live_job (job, org, shard) select * from unnest($1, $2, $3) on conflict do nothing",
                   ItemParams(set.live_jobs)});
  if (!set.outbox_runs.empty())
    all.push_back({"insert into outbox (item, org, shard, is_run) select *, 1 from unnest($1, $2, $3) on conflict do nothing",
                   ItemParams(set.outbox_runs)});
  if (!set.outbox_jobs.empty())
    all.push_back({"insert into outbox (item, org, shard, is_run) select *, 0 from unnest($1, $2, $3) on conflict do nothing",
                   ItemParams(set.outbox_jobs)});
  if (!set.ended_runs.empty()) all.push_back({"delete from live_run where run = any($1)", PgParams().IdArray(set.ended_runs)});
  if (!set.ended_jobs.empty()) all.push_back({"delete from live_job where job = any($1)", PgParams().IdArray(set.ended_jobs)});
  if (!set.outbox_done.empty())
    all.push_back({"delete from outbox o where o.item = any($1) and not exists (select 1 from cancel c where c.item = o.item)",
                   PgParams().IdArray(set.outbox_done)});
  if (!set.outbox_ended.empty())
    all.push_back({"delete from outbox where item = any($1)", PgParams().IdArray(set.outbox_ended)});
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
