// The load of `bench load` as a person would do it with psql, measured beside ours.
#pragma once

#include <optional>
#include <string>

#include "client/bench/installation.h"
#include "common/base/clock.h"
#include "common/base/result.h"

namespace millrace::cli {

struct HandLoad {
  std::string mode, csv, dsn, log;
  std::string table;  // append: is made by it; replace: is put in its place; merge: is there, with order_id as its primary key
  bool unlogged = false;    // append: the table is
  std::string prototype{};  // replace: a program, see RunPrototype
};
struct HandCost {
  double wall_s = 0, client_cpu_s = 0, server_cpu_s = 0;
  double raw_copy_s =
      0;  // append: of the same rows, ready in COPY's binary form, into such a table: the limit of one connection
  double prototype_s = 0;  // replace: of load.prototype
};
// append and replace: \copy of the rows with a key, countries as they are, into a new table (replace: analyzed, then renamed
// into place). merge: \copy into an unlogged staging table, analyze, one `insert ... on conflict (order_id) do update` with the
// countries in capitals. nullopt: there is no psql on the path. kRejected: it failed, see the log.
Result<std::optional<HandCost>> LoadByHand(const HandLoad& load, const bench::Installation& at, const Clock& clock);

// The seconds of `PROTOTYPE CSV DSN TABLE`, which makes TABLE (that of `load` with _plain after its name) and loads the clean
// rows into it. kRejected: it failed, see the log.
Result<double> RunPrototype(const HandLoad& load, const Clock& clock);
std::string PrototypeTable(const HandLoad& load);

// Makes the table of `load`, empty.
std::string CreateTable(const HandLoad& load, const std::string& table);

double ChildrenCpuSeconds();                               // of those that have ended
double PostgresCpuSeconds(const bench::Installation& at);  // 0: its processes may not be looked at

}  // namespace millrace::cli
