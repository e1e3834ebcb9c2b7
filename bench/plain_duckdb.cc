// The demo's work without Millrace: one process, the pipeline file's own SQL over the same files, the same result as Parquet
// and merged into a table of a SQLite file. bench/run_demo_compare runs it beside `millrace run`.
//   millrace_plain_duckdb PIPELINE_FILE OUT_DIR [THREADS]
// Prints one JSON object with the milliseconds of its parts. It does none of: checksums of its inputs, contract and checks,
// publish by manifest, fence and receipt, history, confinement.
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "common/base/clock.h"
#include "common/drivers/duckdb.h"
#include "common/drivers/sqlite.h"
#include "common/model/pipeline_parser.h"

namespace millrace::bench {
namespace {

constexpr const char* kTable =
    "create table if not exists flight_delays (origin text, city text, day text, flights integer, mean_delay real, "
    "p95_delay real, primary key (origin, day))";
constexpr const char* kMerge =
    "insert into flight_delays values (?1, ?2, ?3, ?4, ?5, ?6) on conflict (origin, day) do update set city = excluded.city, "
    "flights = excluded.flights, mean_delay = excluded.mean_delay, p95_delay = excluded.p95_delay";

double MsSince(MonoTime from, const Clock& clock) { return static_cast<double>((clock.Now() - from).count()) / 1000.0; }

Result<std::int64_t> Load(duck::Connection& connection, const std::string& parquet, const std::string& database) {
  MILLRACE_TRY_ASSIGN(auto db, sqlite::Database::Open(database, {}));
  MILLRACE_TRY(db.Exec(kTable));
  MILLRACE_TRY_ASSIGN(auto rows, connection.Stream(fmt::format(
                                     "select origin, city, cast(day as text) as day, flights, mean_delay, p95_delay from "
                                     "read_parquet({})",
                                     duck::QuoteText(parquet))));
  MILLRACE_TRY_ASSIGN(auto transaction, sqlite::Transaction::Begin(db));
  std::int64_t total = 0;
  {
    MILLRACE_TRY_ASSIGN(auto merge, db.Prepare(kMerge));
    while (true) {
      MILLRACE_TRY_ASSIGN(const std::size_t n, rows.Next());
      if (n == 0) break;
      const auto origin = rows.Column(0), city = rows.Column(1), day = rows.Column(2);
      const auto flights = rows.Column(3).Values<std::int64_t>();
      const auto mean = rows.Column(4).Values<double>(), p95 = rows.Column(5).Values<double>();
      for (std::size_t i = 0; i < n; ++i) {
        merge.BindAll(origin.Text(i), city.Text(i), day.Text(i), flights[i], mean[i], p95[i]);
        MILLRACE_TRY(merge.Run());
      }
      total += static_cast<std::int64_t>(n);
    }
  }
  MILLRACE_TRY(transaction.Commit());
  return total;
}

Result<void> Run(const std::string& file, const std::string& out, int threads) {
  const SystemClock clock;
  std::ifstream in(file);
  const std::string source{std::istreambuf_iterator<char>(in), {}};
  const auto parsed = ParsePipeline(source, file);
  if (!parsed.pipeline) return Fail(ErrorCode::kInvalidArgument, "{}", RenderAll(parsed.diagnostics, source));
  const std::string data = (std::filesystem::absolute(file).parent_path() / "data").string();
  std::string sql;
  for (const auto& stage : parsed.pipeline->stages)
    if (const auto* transform = std::get_if<TransformSpec>(&stage.work)) sql = transform->sql;

  const MonoTime start = clock.Now();
  MILLRACE_TRY_ASSIGN(auto database, duck::Database::Open({.threads = threads}));
  MILLRACE_TRY_ASSIGN(auto connection, database.Connect());
  MILLRACE_TRY(connection.Execute(
      fmt::format("create view flights as select * from read_parquet({})", duck::QuoteText(data + "/flights-*.parquet"))));
  MILLRACE_TRY(connection.Execute(fmt::format(
      "create view airports as select * from read_csv({}, columns = {{'iata': 'varchar', 'name': 'varchar', 'city': 'varchar', "
      "'state': 'varchar', 'country': 'varchar', 'latitude': 'double', 'longitude': 'double'}})",
      duck::QuoteText(data + "/airports.csv"))));
  const double open_ms = MsSince(start, clock);

  const MonoTime sql_start = clock.Now();
  const std::string parquet = out + "/delays.parquet";
  MILLRACE_TRY(connection.Execute(
      fmt::format("copy ({}) to {} (format parquet, compression zstd)", duck::StripSemicolon(sql), duck::QuoteText(parquet)),
      {{.name = "since", .type = "date", .value = "2001-01-01"}}));
  const double sql_ms = MsSince(sql_start, clock);

  const MonoTime load_start = clock.Now();
  MILLRACE_TRY_ASSIGN(const std::int64_t rows, Load(connection, parquet, out + "/warehouse.db"));
  fmt::print("{{\"open_ms\": {:.1f}, \"sql_ms\": {:.1f}, \"load_ms\": {:.1f}, \"rows\": {}}}\n", open_ms, sql_ms,
             MsSince(load_start, clock), rows);
  return {};
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: millrace_plain_duckdb PIPELINE_FILE OUT_DIR [THREADS]\n");
    return 2;
  }
  const auto done = millrace::bench::Run(argv[1], argv[2], argc > 3 ? std::atoi(argv[3]) : 2);
  if (done) return 0;
  fmt::print(stderr, "millrace_plain_duckdb: {}\n", done.error().message);
  return 1;
}
