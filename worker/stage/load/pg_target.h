// A target table in PostgreSQL: what it looks like, whether the dataset fits, and swapping it for a new one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/model/pipeline.h"
#include "worker/stage/load/pg_fence.h"
#include "worker/stage/load/types.h"

namespace millrace::load {

struct PgTarget {
  std::string schema, table;  // as they are, unquoted
  bool exists = false;
  std::int64_t oid = 0;
  char kind = 'r';  // pg_class.relkind
  struct Column {
    std::string name, type;  // format_type's spelling
    bool not_null = false, has_default = false, generated = false;
    std::string collation;  // quoted and qualified, where it is not the type's own
  };
  std::vector<Column> columns;
  std::vector<std::vector<std::string>> unique_keys;  // of valid, total, immediate unique indexes; each sorted
  std::string Quoted() const;
};

// "schema.table", or "table" in schema public. Class invalid_target: anything else.
Outcome<PgTarget> DescribeTarget(PgFence& fence, std::string_view name);

// The dataset's columns on their way into the target; into the table to be created when there is none. Class
// schema_mismatch lists every column that does not fit.
Outcome<std::vector<PgColumn>> PlanColumns(const PgTarget& target, const std::vector<ColumnSpec>& dataset);

// "(a integer not null, b text, primary key (a))"
std::string CreateBody(const std::vector<PgColumn>& columns, const std::vector<std::string>& primary_key);
// "a, b" quoted.
std::string ColumnList(const std::vector<PgColumn>& columns);

// What CREATE TABLE (LIKE ...) and a rename would lose: views, triggers, policies, ... A table that has any keeps its
// identity: its rows are deleted and copied anew in one transaction. `referenced` (foreign keys of other tables) rules out
// both.
struct SwapObstacles {
  std::vector<std::string> keep_identity;  // empty: the swap is possible
  std::vector<std::string> referenced;     // "orders.customer_fkey"
};
Outcome<SwapObstacles> FindObstacles(PgFence& fence, const PgTarget& target);

// What a swap must put back after the rows are in: statements for the new table, before and after the rename.
struct SwapPlan {
  std::vector<std::string> build;   // indexes, constraints, grants, options, owner, comments: on the new table
  std::vector<std::string> rename;  // index and constraint names, after the old table is gone
  std::string fingerprint;          // of the old table's definition
};
Outcome<SwapPlan> PlanSwap(PgFence& fence, const PgTarget& target, std::string_view new_table, std::string_view hash);
// Changes whenever a column, index, constraint, grant, option or comment of the table changes.
Outcome<std::string> Fingerprint(PgFence& fence, const PgTarget& target);

}  // namespace millrace::load
