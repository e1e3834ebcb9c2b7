// How rows of an audited table get into PostgreSQL: one statement per table and transaction. Internal to common/ledger.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "common/drivers/postgres.h"
#include "common/ledger/sql_store.h"

namespace millrace::ledger {

// Columns whose value is the same in all rows of a batch travel once, the others as arrays through unnest: most columns of most
// batches do not vary. One row needs no array.
//
// The texts are few, so that they can stay prepared: a table has at most kFormsMax sets of columns that travel once. Not
// thread-safe.
class RowInserter {
 public:
  // The statement's text lives as long as this. REQUIRES: at least one row; rows.index counts up by one.
  PgStatement Insert(Table table, const WriteSet::TableRows& rows, const AuditRecord& record);

  static constexpr std::size_t kFormsMax = 16;
  static constexpr std::size_t kRowsOfNewForm = 8;  // what a few rows have in common may be chance

 private:
  using Columns = std::uint32_t;  // a bit per column: it travels once
  Columns FormFor(Table table, Columns same, std::size_t rows);

  std::array<std::map<Columns, std::string>, kTableCount> forms_;
};

}  // namespace millrace::ledger
