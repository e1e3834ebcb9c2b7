// A target table in SQLite: what it looks like, and what its constraints do to rows.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/drivers/sqlite.h"
#include "worker/stage/load/fence.h"

namespace millrace::load {

struct SqliteTable {
  struct Column {
    std::string type;
    bool must_have_value = false;  // not null without default
    bool generated = false;
  };
  bool exists = false;
  bool is_view = false;
  std::map<std::string, Column> columns;
  bool may_replace = false;  // a constraint says ON CONFLICT REPLACE: an insert can delete other rows, uncounted
  bool may_ignore = false;   // a trigger or a constraint can drop a row without an error
};
Outcome<SqliteTable> DescribeSqliteTable(sqlite::Database& db, const std::string& table);

// SQLite's names are the same in any case.
std::string LowerCase(std::string_view name);

// SQLite's affinity rules (datatype3.html, 3.1) for a declared type: 'i'nteger, 't'ext, 'b'lob, 'r'eal, 'n'umeric.
char SqliteAffinity(std::string_view type);

// A unique index on exactly the key: its columns, each with the collation that decides which values are equal.
struct SqliteKeyIndex {
  struct Part {
    std::string column, collation;
  };
  std::vector<Part> parts;
  bool IsBinary() const;
};
// All of them; total ones only. The rowid's own primary key counts as binary.
Outcome<std::vector<SqliteKeyIndex>> FindKeyIndexes(sqlite::Database& db, const std::string& table,
                                                    const std::vector<std::string>& key);

}  // namespace millrace::load
