// A ledger as a program of an earlier version left it, PostgreSQL or SQLite.
#pragma once

#include <string>

#include "common/ledger/migrations.h"
#include "tests/support/ledger_fixture.h"

namespace millrace::testing {

class OldLedgerTest : public LedgerTest {
 protected:
  bool Postgres() const { return GetParam() == LedgerKind::kPostgres; }
  // Empty. 0: without any table. `ledger_` is open, and migrates when it is told to.
  void MakeSchemaOf(std::size_t version) {
    ledger_.reset();
    const auto all = Postgres() ? ledger::PostgresMigrations() : ledger::SqliteMigrations();
    if (Postgres()) {
      Raw("drop schema millrace cascade; create schema millrace; create table millrace.schema_version (version integer primary "
          "key, applied_at timestamptz not null default now())");
    } else {
      dsn_ = folder_ + "/before.db";
      Raw("create table schema_version (version integer primary key, applied_at integer not null) strict");
    }
    for (std::size_t v = 0; v < version; ++v) {
      Raw(std::string(all[v]));
      Raw("insert into schema_version values (" + std::to_string(v + 1) + (Postgres() ? ", now())" : ", 0)"));
    }
    if (version > 0) Raw("insert into ledger_setting (name, number) values ('shard_count', " + std::to_string(kShards) + ")");
    if (version > 0 && Postgres()) Raw("select ensure_partitions(now(), 4)");
    ledger_ = Open();
  }
};

}  // namespace millrace::testing
