// Several statements of one transaction as one: each statement costs the server a message to parse, a portal and a start of its
// executor, which for a single row is more than the row. Internal to common/ledger.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/drivers/postgres.h"

namespace millrace::ledger {

// Makes "with p0 as (insert ...), p1 as (delete ...) select ..." and keeps the texts, so that they can stay prepared. The
// server runs all of it, in an order of its own and under one snapshot: no part sees what another one writes. Not thread-safe.
class StatementCombiner {
 public:
  // `main` is a select, the parts are inserts and deletes without returning; parameters are $1, $2 ... in each. Their texts
  // must outlive this, and equal texts must be the same bytes in memory. Moves the statements' parameters away, unless it
  // answers nothing: there are too many parts, too many bytes (the check is to
  // come before megabytes are sent, which gain nothing), or too many texts already. The combined text lives as long as this.
  std::optional<PgStatement> Combine(PgStatement& main, std::span<PgStatement> parts);

  static constexpr std::size_t kPartsMax = 8;
  static constexpr std::size_t kTextsMax = 128;
  static constexpr std::size_t kBytesMax = 64u << 10;

 private:
  std::map<std::vector<const char*>, std::string> texts_;
};

}  // namespace millrace::ledger
