// Runs of the command line on data that is wrong, missing, large or exactly right: what lands in the target, and what does not.
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <cstdlib>

#include "common/drivers/duckdb.h"
#include "tests/support/cli_runner.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CliData : public CliTest {
 protected:
  CliData() { Write("a.csv", "id,amount\n1,10\n2,20\n"); }
  ~CliData() override { ExpectSound(); }

  // A failed run: the stage that failed, with its class and the text of its error.
  nlohmann::json ExpectFails(const std::string& file, const std::string& stage, const std::string& error_class,
                             const std::string& text, std::vector<std::string> more = {}) {
    std::vector<std::string> args{"run", file};
    args.insert(args.end(), more.begin(), more.end());
    auto run = RunJson(args, 1);
    EXPECT_EQ(run.at("state"), "failed");
    const auto failed = StageOf(run, stage);
    EXPECT_EQ(failed.at("state"), "dead");
    EXPECT_EQ(failed.at("error_class"), error_class);
    EXPECT_THAT(failed.at("error").get<std::string>(), HasSubstr(text));
    EXPECT_THAT(run.at("reason").get<std::string>(), AllOf(HasSubstr("'" + stage + "'"), HasSubstr(text)));
    EXPECT_EQ(run.at("changed"), 0);
    return run;
  }
};

TEST_F(CliData, AValueThatDoesNotFitIsNamedByFileLineAndColumn) {
  Write("pin.csv", "id,amount\n1,10\n2,20\n");
  WritePipeline("pin",
                "  raw: { extract: { from: file, path: pin.csv, columns: { id: bigint, amount: double } } }\n"
                "  l: { load: { from: raw, to: warehouse, table: x } }\n");
  EXPECT_EQ(Run({"run", "pin.yaml", "-q"}).code, 0);
  Write("pin.csv", "id,amount\n3,10\n4,abc\n5,6\nx,def\n");
  const auto run = ExpectFails("pin.yaml", "raw", "bad_value", "pin.csv:3: column 'amount': Could not convert string \"abc\"");
  EXPECT_EQ(StageOf(run, "l").at("state"), "skipped");
  EXPECT_EQ(Warehouse("select id from x order by id"), "id\n1\n2\n");
  EXPECT_EQ(CountManifests("pin", "raw"), 1);
}

TEST_F(CliData, AFileThatChangesItsColumnsIsADriftWithTheWayOut) {
  Write("d.csv", "id,amount\n1,10\n");
  WritePipeline("d",
                "  raw: { extract: { from: file, path: d.csv } }\n  l: { load: { from: raw, to: warehouse, table: x } }\n");
  EXPECT_EQ(Run({"run", "d.yaml", "-q"}).code, 0);
  Write("d.csv", "id,amount,extra\n1,10,a\n");
  ExpectFails("d.yaml", "raw", "schema_drift", "d.csv differs from the pinned schema: new: extra");
  Write("d.csv", "id\n1\n");
  const auto run = ExpectFails("d.yaml", "raw", "schema_drift", "missing: amount bigint");
  EXPECT_THAT(StageOf(run, "raw").at("error").get<std::string>(),
              HasSubstr("delete " + (home_ / "lake/1/d/raw/schema.json").string()));
  Write("d.csv", "amount,id\n10,1\n");
  ExpectFails("d.yaml", "raw", "schema_drift", "columns come in another order: amount, id");
  Write("d.csv", "id,amount\n2,x\n");
  ExpectFails("d.yaml", "raw", "bad_value", "d.csv:2: column 'amount'");
  EXPECT_EQ(Warehouse("select id, amount from x"), "id,amount\n1,10\n");
  std::filesystem::remove(home_ / "lake/1/d/raw/schema.json");  // what the message says
  Write("d.csv", "amount,id\n20,2\n");
  EXPECT_EQ(Run({"run", "d.yaml", "-q"}).code, 0);
  EXPECT_EQ(Warehouse("select id, amount from x order by id"), "id,amount\n1,10\n2,20\n");
}

TEST_F(CliData, AFailingCheckNamesRowsAndLeavesTheTargetAlone) {
  WritePipeline(
      "c",
      "  raw: { extract: { from: file, path: a.csv } }\n"
      "  t:\n    transform: select id, amount from raw\n    checks:\n      - unique: [id]\n      - not_null: [amount]\n"
      "      - expression: amount > 0\n      - row_count: { min: 2, max: 3 }\n"
      "  l: { load: { from: t, to: warehouse, table: x, mode: replace } }\n");
  EXPECT_EQ(Run({"run", "c.yaml", "-q"}).code, 0);
  Write("a.csv", "id,amount\n1,10\n2,20\n2,30\n");
  ExpectFails("c.yaml", "t", "check_failed", "check unique(id) does not hold for 1 keys, for example {id=2, copies=2}");
  Write("a.csv", "id,amount\n7,\n8,20\n");
  ExpectFails("c.yaml", "t", "check_failed",
              "check not_null(amount) does not hold for 1 rows, for example {id=7, amount=null}");
  Write("a.csv", "id,amount\n7,-5\n8,20\n");
  ExpectFails("c.yaml", "t", "check_failed",
              "check expression(amount > 0) does not hold for 1 rows, for example {id=7, amount=-5}");
  Write("a.csv", "id,amount\n7,5\n");
  ExpectFails("c.yaml", "t", "check_failed", "check row_count(min 2, max 3) does not hold: 1 rows");
  EXPECT_EQ(Warehouse("select * from x order by id"), "id,amount\n1,10\n2,20\n");
  EXPECT_EQ(CountManifests("c", "t"), 1);
}

TEST_F(CliData, AContractFailsSetsAsideOrDropsAndEveryRowIsCounted) {
  Write("c.csv", "id,amount,who\n1,10,a\n2,20,\n3,-5,c\n");
  const auto write = [&](const std::string& violation) {
    WritePipeline("c_" + violation,
                  "  raw: { extract: { from: file, path: c.csv } }\n"
                  "  t:\n    transform: select id, amount::varchar as amount, who from raw\n"
                  "    contract: { id: integer not null, who: text not null, amount: utinyint, on_violation: " +
                      violation +
                      " }\n"
                      "  l: { load: { from: t, to: warehouse, table: " +
                      violation + " } }\n");
    return "c_" + violation + ".yaml";
  };
  const auto failed =
      ExpectFails(write("fail"), "t", "contract_violation", "2 rows break the contract: who is null in {\"id\":2");
  EXPECT_THAT(StageOf(failed, "t").at("error").get<std::string>(), HasSubstr("amount is not a utinyint: -5 in {\"id\":3"));
  EXPECT_EQ(CountManifests("c_fail", "t"), 0);
  for (const std::string violation : {"quarantine", "drop"}) {
    const auto run = RunJson({"run", write(violation)});
    const auto rows = StageOf(run, "t").at("rows");
    EXPECT_EQ(rows.at("read"), 3);
    EXPECT_EQ(rows.at("loaded"), 1);
    EXPECT_EQ(rows.at("quarantined"), violation == "quarantine" ? 2 : 0);
    EXPECT_EQ(rows.at("filtered"), violation == "drop" ? 2 : 0);
    EXPECT_TRUE(run.at("balanced"));
    EXPECT_EQ(StageOf(run, "t").at("quarantine") != "", violation == "quarantine");
    EXPECT_EQ(Warehouse("select * from \"" + violation + "\""), "id,amount,who\n1,10,a\n");
  }
}

TEST_F(CliData, AnEmptyExtractNeverEmptiesATargetUnlessItMay) {
  const auto write = [&](const std::string& extract, const std::string& load) {
    WritePipeline("e", "  raw: { extract: { from: file, path: a.csv" + extract +
                           " } }\n"
                           "  l: { load: { from: raw, to: warehouse, table: x, mode: replace" +
                           load + " } }\n");
  };
  write("", "");
  EXPECT_EQ(Run({"run", "e.yaml", "-q"}).code, 0);
  Write("a.csv", "id,amount\n");
  ExpectFails("e.yaml", "raw", "empty_extract", "a.csv has no rows; set allow_empty: true if that is right");
  write(", allow_empty: true", "");
  ExpectFails("e.yaml", "l", "empty_input", "allow_empty");
  Write("a.csv", "");
  const CliResult nothing = Run({"run", "e.yaml"});
  EXPECT_EQ(nothing.code, 1);
  EXPECT_THAT(nothing.err, HasSubstr("a.csv is empty: it has 0 bytes, not even a header; fix what writes it"));
  Write("a.csv", "id,amount\n");
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n2\n");
  write(", allow_empty: true", ", allow_empty: true");
  const auto run = RunJson({"run", "e.yaml"});
  EXPECT_EQ(StageOf(run, "l").at("rows").at("read"), 0);
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n0\n");
}

TEST_F(CliData, ADestinationThatIsDownIsTriedWithBackoffAndGivenUpClearly) {
  WritePipeline("down",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  l:\n    load: { from: raw, to: warehouse, table: x }\n    retry: { max_attempts: 3, backoff: 300ms }\n");
  const std::vector<std::string> down{"--set", "connections.warehouse.type=postgres", "--set",
                                      "connections.warehouse.dsn=postgres://u:hushhush@127.0.0.1:1/db"};
  const auto run = ExpectFails("down.yaml", "l", "destination_unavailable", "Connection refused", down);
  EXPECT_EQ(StageOf(run, "l").at("failures"), 3);
  EXPECT_EQ(StageOf(run, "l").at("deliveries"), 3);
  const CliResult logs = Run({"run", "logs", run.at("run"), "--stage", "l"});
  EXPECT_THAT(logs.out, AllOf(HasSubstr("l attempt 1 on"), HasSubstr("l attempt 2 on"), HasSubstr("l attempt 3 on")));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_)) {
    if (entry.is_regular_file()) {
      EXPECT_EQ(ReadAll(entry.path()).find("hushhush"), std::string::npos) << entry.path();
    }
  }
  EXPECT_EQ(Run({"run", "down.yaml", "-q"}).code, 0) << "with the destination back the next run loads";
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n2\n");
}

TEST_F(CliData, AFullDiskIsSaidAndNothingIsHalfWritten) {
  std::filesystem::create_directories(home_);
  if (::mount("tmpfs", home_.c_str(), "tmpfs", 0, "size=6m,mode=0700") != 0)
    GTEST_SKIP() << "cannot mount a tmpfs: run as root";
  WritePipeline("big",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  t:\n    transform: \"select a.id * 1000000 + r.i as id, md5(r.i::text) as x from raw a, range($n) r(i)\"\n"
                "    retry: { max_attempts: 2, backoff: 50ms }\n"
                "  l: { load: { from: t, to: warehouse, table: x, mode: replace } }\n",
                "params: { n: 400000 }\n");
  ExpectFails("big.yaml", "t", "io_error", "No space left on device");
  EXPECT_EQ(CountManifests("big", "t"), 0);
  ExpectSound();
  const auto run = RunJson({"run", "big.yaml", "-p", "n=1000"});
  EXPECT_EQ(StageOf(run, "l").at("inserted"), 2000);
  // Full already when the command starts: the ledger itself cannot be written.
  {
    std::ofstream fill(home_ / "fill", std::ios::binary);
    const std::string block(1 << 16, 'x');
    while (fill.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
    }
  }
  const CliResult full = Run({"run", "big.yaml", "-p", "n=1001"});
  EXPECT_THAT(full.code, ::testing::AnyOf(1, 6, 7)) << full.out << full.err;
  EXPECT_THAT(full.out + full.err, ::testing::AnyOf(HasSubstr("disk is full"), HasSubstr("full"), HasSubstr("No space left")))
      << full.err;
  std::filesystem::remove(home_ / "fill");
  ExpectSound();
  EXPECT_EQ(Run({"run", "big.yaml", "-p", "n=1000"}).code, 0);
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n2000\n");
  ExpectSound();
  ::umount2(home_.c_str(), MNT_DETACH);
}

TEST_F(CliData, ADiskThatFillsUpWhileARunGoesOnStopsItUntilThereIsSpace) {
  std::filesystem::create_directories(home_);
  if (::mount("tmpfs", home_.c_str(), "tmpfs", 0, "size=8m,mode=0700") != 0)
    GTEST_SKIP() << "cannot mount a tmpfs: run as root";
  WritePipeline("fill",
                "  raw: { extract: { from: file, path: a.csv } }\n"
                "  nap: { command: [sh, -c, \"echo x >> naps; while [ ! -e go ]; do sleep 0.05; done\"], after: raw }\n"
                "  l: { load: { from: raw, to: warehouse, table: x }, after: nap }\n");
  const auto run = Start({"run", "fill.yaml", "-o", "json"});
  ASSERT_TRUE(Eventually([&] { return !ReadAll(dir_ / "naps").empty(); }));
  {
    std::ofstream fill(home_ / "fill", std::ios::binary);
    for (int i = 0; fill.put('x').flush() && i < 100; ++i) fill << std::string(1 << 16, 'x') << std::flush;
  }
  {
    std::ofstream rest(home_ / "rest", std::ios::binary);  // the last pages, byte by byte
    while (rest.put('x').flush()) {
    }
  }
  Write("go", "");
  EXPECT_TRUE(Eventually([&] { return run->Err().find("disk is full") != std::string::npos; })) << run->Err();
  std::filesystem::remove(home_ / "fill");
  std::filesystem::remove(home_ / "rest");
  const CliResult done = run->Wait(std::chrono::seconds{40});
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(Warehouse("select count(*) n from x"), "n\n2\n") << "once";
  ExpectSound();
  ::umount2(home_.c_str(), MNT_DETACH);
}

TEST_F(CliData, FiveMillionRowsNeedLittleMemory) {
  WritePipeline(
      "m",
      "  raw: { extract: { from: file, path: a.csv } }\n"
      "  t: { transform: \"select r.i as id, a.amount + r.i as v, 'name-' || r.i as name from raw a, range(2500000) r(i)\" }\n"
      "  f: { load: { from: t, to: file, path: out.parquet } }\n");
  const auto run = RunJson({"run", "m.yaml", "--set", "worker.memory_max=512MiB"});
  EXPECT_EQ(StageOf(run, "f").at("rows").at("loaded"), 5'000'000);
  rusage usage{};
  ASSERT_EQ(::getrusage(RUSAGE_CHILDREN, &usage), 0);
  EXPECT_LT(usage.ru_maxrss, 800 * 1024) << "KiB of the largest process";
  auto db = duck::Database::Open({});
  auto connection = db->Connect();
  const auto sum = connection->Query("select count(*), sum(v) from read_parquet('" + Path("out.parquet") + "')");
  ASSERT_TRUE(sum) << sum.error().message;
  EXPECT_EQ(sum->Int(0), 5'000'000);
  EXPECT_EQ(sum->Text(1), "6250072500000");
}

TEST_F(CliData, PathsMayHaveSpacesAndUnicodeAndBeRelativeOrAbsolute) {
  home_ = dir_ / "höme mit raum";
  std::filesystem::create_directories(dir_ / "dir mit ü 名");
  Write("dir mit ü 名/dätä 1.csv", "id,amount\n1,10\n");
  Write("dir mit ü 名/pipe line.yaml",
        "version: 1\npipeline: p\nstages:\n  raw: { extract: { from: file, path: \"dätä *.csv\" }, queue: heavy }\n"
        "  l: { load: { from: raw, to: warehouse, table: x, mode: replace } }\n"
        "  f: { load: { from: raw, to: file, path: \"aus gabe.csv\" } }\n");
  const std::string relative = "dir mit ü 名/pipe line.yaml";
  EXPECT_EQ(Run({"run", relative, "-q"}).code, 0);
  EXPECT_EQ(Run({"run", Path(relative), "-q"}, {.env = {}, .cwd = "/"}).code, 0);
  EXPECT_EQ(Run({"run", "pipe line.yaml", "-q"}, {.env = {}, .cwd = dir_ / "dir mit ü 名"}).code, 0);
  EXPECT_EQ(ReadAll(dir_ / "dir mit ü 名" / "aus gabe.csv"), "id,amount\n1,10\n");
  const auto pipelines = RunJson({"pipeline", "list"});
  ASSERT_EQ(pipelines.size(), 1u);
  EXPECT_EQ(pipelines[0].at("version"), 1) << "the same file from three folders is one version";
  const CliResult relative_home = Run({"run", "list", "-q", "--home", "höme mit raum"});
  EXPECT_EQ(std::count(relative_home.out.begin(), relative_home.out.end(), '\n'), 3);
}

// What plain SQL over the same files gives.
std::string PlainDemoRows() {
  auto db = duck::Database::Open({});
  auto connection = db->Connect();
  const std::string data = std::string(MILLRACE_SOURCE_DIR) + "/ops/demo/data/";
  const auto table = connection->Query(
      "select f.origin, a.city, cast(f.date as date)::varchar as day, count(*) as flights, avg(f.delay) as mean_delay, "
      "quantile_cont(f.delay, 0.95) as p95_delay from '" +
      data + "flights-*.parquet' f join read_csv('" + data +
      "airports.csv') a on a.iata = f.origin where f.date >= date '2001-01-01' and f.delay between -60 and 1440 group by all "
      "order by origin, day");
  EXPECT_TRUE(table) << (table ? "" : table.error().message);
  std::string out;
  if (!table) return out;
  for (const auto& row : table->rows) {
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, "%s|%.9g|%.9g\n", row[3]->c_str(), std::atof(row[4]->c_str()),
                  std::atof(row[5]->c_str()));
    out += *row[0] + "|" + *row[1] + "|" + *row[2] + "|" + numbers;
  }
  return out;
}

TEST_F(CliData, DateformatReadsDatesAsItSaysAndNothingElse) {
  Write("d.csv", "id,day\n1,03/04/2026\n2,12/11/2025\n");
  const auto run = [&](const std::string& format, const std::string& more, int code) {
    std::filesystem::remove_all(home_);
    WritePipeline("d", "  raw: { extract: { from: file, path: d.csv, options: { dateformat: \"" + format + "\" }" + more +
                           " } }\n"
                           "  l: { load: { from: raw, to: warehouse, table: x } }\n");
    return RunJson({"run", "d.yaml"}, code);
  };
  run("%d/%m/%Y", ", columns: { day: date }", 0);
  EXPECT_EQ(Warehouse("select id, day from x order by id"), "id,day\n1,2026-04-03\n2,2025-11-12\n");
  run("%m/%d/%Y", "", 0);
  EXPECT_EQ(Warehouse("select id, day from x order by id"), "id,day\n1,2026-03-04\n2,2025-12-11\n") << "sniffed as dates too";
  Write("d.csv", "id,day\n1,03/04/2026\n2,31/12/2025\n");
  const auto bad = run("%m/%d/%Y", ", columns: { day: date }", 1);
  EXPECT_EQ(StageOf(bad, "raw").at("error_class"), "bad_value");
  EXPECT_EQ(StageOf(bad, "raw").at("error"),
            "d.csv:3: column 'day': Could not convert string \"31/12/2025\" to 'DATE'; fix the "
            "source, or declare the column as text and cast it in a transform");
  WritePipeline("q", "  raw: { extract: { from: file, path: d.csv, options: { dateformat: \"%Q\" } } }\n");
  const CliResult unknown = Run({"check", "q.yaml"});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_THAT(unknown.err, ::testing::HasSubstr("%Q"));
}

TEST_F(CliData, NothingIsRoundedInsideListsAndStructsEither) {
  const auto run = [&](const std::string& file, const std::string& columns, int code, const std::string& contract = "") {
    std::filesystem::remove_all(home_);
    WritePipeline("n", "  raw: { extract: { from: file, path: " + file + ", columns: { " + columns + " } }" + contract +
                           " }\n"
                           "  l: { load: { from: raw, to: warehouse, table: x } }\n");
    return StageOf(RunJson({"run", "n.yaml"}, code), "raw");
  };
  Write(
      "n.ndjson",
      "{\"id\":1,\"xs\":[1,2],\"s\":{\"a\":2.5,\"b\":null}}\n{\"id\":2,\"xs\":[1.25,2],\"s\":null}\n{\"id\":3,\"xs\":null}\n");
  EXPECT_EQ(run("n.ndjson", "xs: \"bigint[]\"", 1).at("error"),
            "n.ndjson: record 2: column 'xs': '[1.25,2]' does not fit bigint[] without rounding");
  EXPECT_EQ(run("n.ndjson", "xs: \"double[]\", s: \"struct(a integer, b text)\"", 1).at("error"),
            "n.ndjson: record 1: column 's': '{\"a\":2.5,\"b\":null}' does not fit struct(\"a\" integer, \"b\" varchar) "
            "without rounding");
  const auto fits = run("n.ndjson", "xs: \"decimal(4,2)[]\", s: \"struct(a decimal(3,1), b text)\"", 0);
  EXPECT_EQ(fits.at("rows").at("loaded"), 3);
  const auto aside = run("n.ndjson", "xs: \"bigint[]\"", 0, ", contract: { id: bigint, on_violation: quarantine }");
  EXPECT_EQ(aside.at("rows").at("quarantined"), 1);
  EXPECT_EQ(aside.at("rows").at("loaded"), 2);
  Write("n.csv", "id,xs\n1,\"[1,2]\"\n2,\"[1.25,2]\"\n");
  EXPECT_EQ(run("n.csv", "xs: \"bigint[]\"", 1).at("error"),
            "n.csv:3: column 'xs': '[1.25,2]' does not fit bigint[] without rounding");
  Write("n.csv", "id,xs\n1,7\n2,15e-1\n");
  EXPECT_EQ(run("n.csv", "xs: bigint", 1).at("error"), "n.csv:3: column 'xs': '15e-1' does not fit bigint without rounding");
}

TEST_F(CliData, AQuarantinedRowThatWouldBeRoundedNamesItsFile) {
  Write("r1.csv", "id,n\n1,7\n");
  Write("r2.csv", "id,n\n2,7.5\n");
  WritePipeline("r",
                "  raw:\n    extract: { from: file, path: \"r*.csv\", columns: { n: bigint } }\n    contract: { n: bigint, "
                "on_violation: quarantine }\n");
  const auto raw = StageOf(RunJson({"run", "r.yaml"}), "raw");
  EXPECT_EQ(raw.at("rows").at("quarantined"), 1);
  const std::string aside = (home_ / "lake" / raw.at("quarantine").get<std::string>()).string();
  WritePipeline("look", "  q: { extract: { from: file, path: \"" + aside +
                            "\" } }\n  l: { load: { from: q, to: file, path: aside.csv } }\n");
  ASSERT_EQ(Run({"run", "look.yaml"}).code, 0);
  EXPECT_THAT(ReadAll(dir_ / "aside.csv"),
              ::testing::AllOf(::testing::HasSubstr("n is not a bigint: 7.5,"), ::testing::HasSubstr("/r2.csv,")));
}

class CliDemo : public CliData {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(std::string(MILLRACE_SOURCE_DIR) + "/ops/demo/data/airports.csv")) {
      ASSERT_EQ(std::getenv("CI"), nullptr) << "no demo data: run ops/setup";
      GTEST_SKIP() << "no demo data: run ops/setup";
    }
  }
  // The warehouse's rows through `query -o csv`, in parts below its row limit.
  std::string WarehouseRows(const std::string& table, const std::vector<std::string>& more) {
    std::vector<std::string> args{"query", "warehouse",
                                  "select origin, city, day, flights, mean_delay, p95_delay from " + table +
                                      " order by origin collate \"" + (more.empty() ? "BINARY" : "C") + "\", day",
                                  "-o", "csv"};
    args.insert(args.end(), more.begin(), more.end());
    const CliResult result = Run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    std::string out;
    const auto rows = ParseCsv(result.out);
    for (std::size_t r = 1; r < rows.size(); ++r) {
      char numbers[96];
      std::snprintf(numbers, sizeof numbers, "%s|%.9g|%.9g\n", rows[r][3].c_str(), std::atof(rows[r][4].c_str()),
                    std::atof(rows[r][5].c_str()));
      out += rows[r][0] + "|" + rows[r][1] + "|" + rows[r][2] + "|" + numbers;
    }
    return out;
  }
  void ExpectDemo(const std::string& table, const std::vector<std::string>& more) {
    std::vector<std::string> args{"run", std::string(MILLRACE_SOURCE_DIR) + "/ops/demo/flight_delays.yaml"};
    args.insert(args.end(), more.begin(), more.end());
    const auto first = RunJson(args);
    const std::string expected = PlainDemoRows();
    const auto rows = std::count(expected.begin(), expected.end(), '\n');
    EXPECT_GT(rows, 30'000);
    EXPECT_EQ(StageOf(first, "warehouse").at("inserted"), rows);
    EXPECT_TRUE(WarehouseRows(table, more) == expected) << "the warehouse differs from plain SQL";
    const auto second = RunJson(args);
    EXPECT_EQ(second.at("changed"), 0);
    EXPECT_EQ(StageOf(second, "warehouse").at("unchanged"), rows);
    EXPECT_TRUE(WarehouseRows(table, more) == expected) << "the second run changed something";
  }
};

TEST_F(CliDemo, TheWarehouseEqualsPlainSqlRowForRow) { ExpectDemo("analytics_flight_delays", {}); }

TEST_F(CliDemo, ThePostgresWarehouseEqualsPlainSqlRowForRow) {
  const char* server = std::getenv("MILLRACE_TEST_POSTGRES");
  if (server == nullptr) {
    ASSERT_EQ(std::getenv("CI"), nullptr) << "MILLRACE_TEST_POSTGRES is not set";
    GTEST_SKIP() << "MILLRACE_TEST_POSTGRES is not set: ops/test sets it";
  }
  const std::string table = "e2e_" + std::to_string(::getpid());
  // The demo's own pipeline, into a schema of this test.
  std::string text = ReadAll(std::string(MILLRACE_SOURCE_DIR) + "/ops/demo/flight_delays.yaml");
  const std::size_t at = text.find("analytics.flight_delays, mode");
  ASSERT_NE(at, std::string::npos);
  text.replace(at, std::string_view("analytics.flight_delays").size(), "public." + table);
  Write("demo.yaml", text);
  std::filesystem::create_directory_symlink(std::string(MILLRACE_SOURCE_DIR) + "/ops/demo/data", dir_ / "data");
  const std::vector<std::string> more{"--set", "connections.warehouse.type=postgres", "--set",
                                      std::string("connections.warehouse.dsn=") + server};
  const std::string command =
      "psql -q -v ON_ERROR_STOP=1 \"" + std::string(server) + "\" -c 'drop table if exists public." + table + "'";
  std::vector<std::string> args{"run", "demo.yaml"};
  args.insert(args.end(), more.begin(), more.end());
  const auto first = RunJson(args);
  const std::string expected = PlainDemoRows();
  EXPECT_EQ(StageOf(first, "warehouse").at("inserted"), std::count(expected.begin(), expected.end(), '\n'));
  EXPECT_TRUE(WarehouseRows("public." + table, more) == expected) << "the warehouse differs from plain SQL";
  const auto second = RunJson(args);
  EXPECT_EQ(second.at("changed"), 0);
  EXPECT_TRUE(WarehouseRows("public." + table, more) == expected) << "the second run changed something";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace millrace::testing
