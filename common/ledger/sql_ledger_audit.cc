#include <algorithm>
#include <cstring>
#include <string>

#include "common/ledger/sql_ledger.h"

namespace millrace::ledger {
namespace {

Digest DigestOf(std::string_view bytes) {
  Digest d = kNoDigest;
  if (bytes.size() == d.size()) std::memcpy(d.data(), bytes.data(), d.size());
  return d;
}

// The position that is stored, and no other one that looks like it in fewer bits.
std::uint32_t IndexOf(const Value& value) {
  return value.null || value.number < 0 || value.number >= std::int64_t{kNoAuditIndex}
             ? kNoAuditIndex
             : static_cast<std::uint32_t>(value.number);
}

// Hops from writer to writer along the primary key: the cost is the number of chains, not of records. What is no id ($1 is the
// lowest) and no number of a record is passed over: it must not stand in for a head, or keep the hops from starting.
constexpr std::string_view kHeads =
    "with recursive w(writer) as (select * from (select writer from audit_record where writer >= $1 order by writer limit 1) f "
    "union all select (select r.writer from audit_record r where r.writer > w.writer order by r.writer limit 1) from w "
    "where w.writer is not null) "
    "select w.writer, (select r.seq from audit_record r where r.writer = w.writer and r.seq between 1 and 9223372036854775807 "
    "order by r.seq desc limit 1), (select r.hash from audit_record r where r.writer = w.writer and r.seq between 1 and "
    "9223372036854775807 order by r.seq desc limit 1) from w where w.writer is not null";

std::optional<AuditHead> HeadOf(std::span<const Value> row) {
  if (row[1].null || row[0].bytes.size() != sizeof(Uuid)) return std::nullopt;
  return AuditHead{AuditWriterId{UuidOf(row[0])}, static_cast<std::uint64_t>(row[1].number), DigestOf(row[2].bytes)};
}

}  // namespace

Result<std::vector<AuditHead>> SqlLedger::AuditHeads(MonoTime deadline) {
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(std::string(kHeads) + " order by w.writer", Params().Id(Uuid{}), deadline));
  std::vector<AuditHead> heads;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (const auto head = HeadOf(rows[i])) heads.push_back(*head);
  return heads;
}

Result<AuditTotals> SqlLedger::Totals(MonoTime deadline) {
  // One statement is one snapshot. A head has a writer; a count has none, and its table's number in the place of the hash.
  std::string sql(kHeads);
  for (std::size_t i = 0; i <= kTableCount; ++i)
    sql += fmt::format(" union all select null, (select count(*) from {}), {}",
                       i == 0 ? "audit_record" : DefOf(kTables[i - 1]).name, "$" + std::to_string(i + 2));
  Params params = Params().Id(Uuid{});
  for (std::size_t i = 0; i <= kTableCount; ++i) params.Bytes(std::to_string(i));
  MILLRACE_TRY_ASSIGN(const Rows rows, store_->Run(sql, params, deadline));
  AuditTotals totals;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i][0].null) {
      if (const auto head = HeadOf(rows[i])) totals.heads.push_back(*head);
      continue;
    }
    const auto count = static_cast<std::uint64_t>(rows[i][1].number);
    const std::size_t table = std::stoul(std::string(rows[i][2].bytes));
    if (table == 0)
      totals.records = count;
    else
      totals.rows[std::string(DefOf(kTables[table - 1]).name)] = count;
  }
  MILLRACE_TRY_ASSIGN(const Rows stray,
                      store_->Run("select r.writer, r.seq, r.hash from audit_record r where r.writer is null or "
                                  "r.seq is null or not (r.seq > 0 and " +
                                      store_->SoundRecord("r") + ") limit 1",
                                  {}, deadline));
  if (!stray.empty())
    totals.stray = AuditHead{AuditWriterId{UuidOf(stray[0][0])}, static_cast<std::uint64_t>(stray[0][1].number), kNoDigest};
  return totals;
}

Result<std::vector<AuditRecord>> SqlLedger::AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after_seq,
                                                         std::uint32_t limit, MonoTime deadline) {
  std::string sql = "select r.writer, r.seq, r.previous, r.at, r.actor, r.leaves, r.root, r.hash, (" +
                    store_->SoundRecord("r") + ") from audit_record r where r.seq > $1";
  Params params;
  params.Int(static_cast<std::int64_t>(after_seq));
  if (writer) {
    sql += " and r.writer = $2";
    params.Id(writer->uuid);
  }
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run(sql + " order by r.writer, r.seq limit " + std::to_string(limit), params, deadline));
  std::vector<AuditRecord> all;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = rows[i];
    AuditRecord r;
    r.writer = AuditWriterId{UuidOf(row[0])};
    r.seq = static_cast<std::uint64_t>(row[1].number);
    r.previous = DigestOf(row[2].bytes);
    r.at = TimeOf(row[3]);
    r.actor = row[4].bytes;
    for (std::size_t at = 0; at < row[5].bytes.size(); at += sizeof(Digest))
      r.leaves.push_back(DigestOf(row[5].bytes.substr(at, sizeof(Digest))));
    r.root = DigestOf(row[6].bytes);
    r.stored_hash = row[8].number != 0 ? DigestOf(row[7].bytes) : kNoDigest;
    all.push_back(std::move(r));
  }
  return all;
}

Result<std::vector<AuditedRow>> SqlLedger::AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime deadline) {
  std::vector<AuditedRow> all;
  for (const Table table : kTables) {
    const TableDef& def = DefOf(table);
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select " + store_->Columns(table, "t") + ", t.audit_index, (" + store_->Sound(table, "t") +
                                        ") from " + std::string(def.name) + " t where t.audit_writer = $1 and t.audit_seq = $2",
                                    Params().Id(writer.uuid).Int(static_cast<std::int64_t>(seq)), deadline));
    const std::size_t at = def.columns.size();
    for (std::size_t i = 0; i < rows.size(); ++i)
      all.push_back({std::string(def.name), KeyText(table, rows[i]), writer, seq, IndexOf(rows[i][at]),
                     rows[i][at + 1].number != 0 ? LeafOf(table, rows[i]) : kNoDigest});
  }
  std::ranges::stable_sort(all, {}, &AuditedRow::index);
  return all;
}

Result<void> SqlLedger::VisitRows(const LeafVisitor& visit, MonoTime deadline) {
  constexpr std::size_t kPart = 1000;
  std::vector<AuditedLeaf> part;
  for (const Table table : kTables) {
    const TableDef& def = DefOf(table);
    const std::size_t at = def.columns.size();
    MILLRACE_TRY(store_->Scan(
        def.name,
        store_->Columns(table, "t") + ", t.audit_writer, t.audit_seq, t.audit_index, (" + store_->Sound(table, "t") + ")",
        [&](std::span<const Value> row) -> Result<void> {
          part.push_back({AuditWriterId{UuidOf(row[at])}, static_cast<std::uint64_t>(row[at + 1].number), IndexOf(row[at + 2]),
                          row[at + 3].number != 0 ? LeafOf(table, row) : kNoDigest});
          if (part.size() < kPart) return {};
          auto visited = visit(def.name, part);
          part.clear();
          return visited;
        },
        deadline));
    if (!part.empty()) MILLRACE_TRY(visit(def.name, part));
    part.clear();
  }
  return {};
}

Result<std::vector<AuditedRow>> SqlLedger::OrphanRows(std::uint32_t limit, MonoTime deadline) {
  std::vector<AuditedRow> all;
  for (const Table table : kTables) {
    if (all.size() >= limit) break;
    const TableDef& def = DefOf(table);
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select " + store_->Columns(table, "t") +
                                        ", t.audit_writer, t.audit_seq, t.audit_index from " + std::string(def.name) +
                                        " t where not exists (select 1 from audit_record r where r.writer = t.audit_writer "
                                        "and r.seq = t.audit_seq and r.seq > 0 and " +
                                        store_->SoundRecord("r") + ") or not (" + store_->Sound(table, "t") + ") limit " +
                                        std::to_string(limit - all.size()),
                                    {}, deadline));
    const std::size_t at = def.columns.size();
    for (std::size_t i = 0; i < rows.size(); ++i)
      all.push_back({std::string(def.name), KeyText(table, rows[i]), AuditWriterId{UuidOf(rows[i][at])},
                     static_cast<std::uint64_t>(rows[i][at + 1].number), IndexOf(rows[i][at + 2]), LeafOf(table, rows[i])});
  }
  return all;
}

}  // namespace millrace::ledger
