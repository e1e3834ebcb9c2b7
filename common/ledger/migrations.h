// The schema, version by version. A migration is never edited once released: add the next one. Internal to common/ledger.
#pragma once

#include <span>
#include <string_view>

namespace millrace::ledger {

// Entry i brings version i to i + 1; each runs in one transaction together with its row in schema_version (PostgreSQL: all of
// them in one where there is no ledger yet).
std::span<const std::string_view> PostgresMigrations();
// Those of them from version 16 on: everything that retention takes in weekly partitions.
std::span<const std::string_view> PostgresWeekMigrations();
std::span<const std::string_view> SqliteMigrations();

}  // namespace millrace::ledger
