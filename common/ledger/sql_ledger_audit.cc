#include <algorithm>
#include <cstring>

#include "common/ledger/sql_ledger.h"

namespace millrace::ledger {
namespace {

Digest DigestOf(std::string_view bytes) {  // a digest of the wrong size compares equal to nothing
  Digest d{};
  std::memcpy(d.data(), bytes.data(), std::min(bytes.size(), d.size()));
  return d;
}

}  // namespace

Result<std::vector<AuditHead>> SqlLedger::AuditHeads(MonoTime deadline) {
  // Hops from writer to writer along the primary key: the cost is the number of chains, not of records.
  MILLRACE_TRY_ASSIGN(
      const Rows rows,
      store_->Run(
          "with recursive w(writer) as (select * from (select writer from audit_record order by writer limit 1) f union all "
          "select (select r.writer from audit_record r where r.writer > w.writer order by r.writer limit 1) from w "
          "where w.writer is not null) "
          "select w.writer, (select r.seq from audit_record r where r.writer = w.writer order by r.seq desc limit 1), "
          "(select r.hash from audit_record r where r.writer = w.writer order by r.seq desc limit 1) "
          "from w where w.writer is not null order by w.writer",
          {}, deadline));
  std::vector<AuditHead> heads;
  for (std::size_t i = 0; i < rows.size(); ++i)
    heads.push_back(
        {AuditWriterId{UuidOf(rows[i][0])}, static_cast<std::uint64_t>(rows[i][1].number), DigestOf(rows[i][2].bytes)});
  return heads;
}

Result<std::vector<AuditRecord>> SqlLedger::AuditRecords(std::optional<AuditWriterId> writer, std::uint64_t after_seq,
                                                         std::uint32_t limit, MonoTime deadline) {
  std::string sql = "select writer, seq, previous, at, actor, leaves, root from audit_record where seq > $1";
  Params params;
  params.Int(static_cast<std::int64_t>(after_seq));
  if (writer) {
    sql += " and writer = $2";
    params.Id(writer->uuid);
  }
  MILLRACE_TRY_ASSIGN(const Rows rows,
                      store_->Run(sql + " order by writer, seq limit " + std::to_string(limit), params, deadline));
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
    all.push_back(std::move(r));
  }
  return all;
}

Result<std::vector<AuditedRow>> SqlLedger::AuditedRows(AuditWriterId writer, std::uint64_t seq, MonoTime deadline) {
  std::vector<AuditedRow> all;
  for (const Table table : kTables) {
    const TableDef& def = DefOf(table);
    MILLRACE_TRY_ASSIGN(const Rows rows,
                        store_->Run("select " + store_->Columns(table, "t") + ", t.audit_index from " + std::string(def.name) +
                                        " t where t.audit_writer = $1 and t.audit_seq = $2",
                                    Params().Id(writer.uuid).Int(static_cast<std::int64_t>(seq)), deadline));
    for (std::size_t i = 0; i < rows.size(); ++i)
      all.push_back({std::string(def.name), KeyText(table, rows[i]), writer, seq,
                     static_cast<std::uint32_t>(rows[i][def.columns.size()].number), LeafOf(table, rows[i])});
  }
  std::ranges::stable_sort(all, {}, &AuditedRow::index);
  return all;
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
                                        "and r.seq = t.audit_seq) limit " +
                                        std::to_string(limit - all.size()),
                                    {}, deadline));
    const std::size_t at = def.columns.size();
    for (std::size_t i = 0; i < rows.size(); ++i)
      all.push_back({std::string(def.name), KeyText(table, rows[i]), AuditWriterId{UuidOf(rows[i][at])},
                     static_cast<std::uint64_t>(rows[i][at + 1].number), static_cast<std::uint32_t>(rows[i][at + 2].number),
                     LeafOf(table, rows[i])});
  }
  return all;
}

}  // namespace millrace::ledger
