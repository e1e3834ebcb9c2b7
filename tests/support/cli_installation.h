// An installation of either form, driven through the real `millrace` executable: embedded (`up`, SQLite), or a broker and a
// worker as processes of their own with a PostgreSQL ledger. Its history is checked at the end. For the e2e tier; the target
// needs millrace_postgres, millrace_sqlite and millrace_zmtp_transport. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "common/drivers/sqlite.h"
#include "common/wire/stream_socket.h"
#include "tests/support/cli_runner.h"
#include "tests/support/test_postgres.h"

namespace millrace::testing {

enum class Form : std::uint8_t { kEmbedded, kPostgres };

class CliInstallation : public CliTest, public ::testing::WithParamInterface<Form> {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(home_);
    if (!Postgres()) return;
    MILLRACE_NEED_POSTGRES();
    database_.emplace("cli_installation");
    ledger_ = database_->dsn();
    clients_ = wire::HoldPort().value();
    workers_ = wire::HoldPort().value();
    const std::string clients = EndpointOf(clients_), workers = EndpointOf(workers_);
    Write("config.yaml", "version: 1\nledger: { dsn: \"" + ledger_ + "\" }\nbroker: { listen_clients: \"" + clients +
                             "\", listen_workers: \"" + workers + "\" }\nworker: { brokers: [\"" + workers + "\"] }\n");
  }
  ~CliInstallation() override {
    processes_.clear();
    CheckHistories();
  }

  static bool Postgres() { return GetParam() == Form::kPostgres; }
  std::vector<std::string> With(std::vector<std::string> args) const {
    if (Postgres()) args.insert(args.end(), {"--config", Path("config.yaml")});
    return args;
  }
  CliResult Do(std::vector<std::string> args, const CliOptions& options = {}) { return Run(With(std::move(args)), options); }
  nlohmann::json Json(std::vector<std::string> args, int code = 0) { return RunJson(With(std::move(args)), code); }
  // What `args` print with -q, a line each.
  std::vector<std::string> Lines(std::vector<std::string> args, const CliOptions& options = {}) {
    args.emplace_back("-q");
    const CliResult result = Do(std::move(args), options);
    EXPECT_EQ(result.code, 0) << result.err;
    std::vector<std::string> lines;
    std::istringstream in(result.out);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }
  // REQUIRES: `args` print one line with -q.
  std::string Id(std::vector<std::string> args, const CliOptions& options = {}) {
    const auto lines = Lines(std::move(args), options);
    EXPECT_EQ(lines.size(), 1U);
    return lines.empty() ? "" : lines.front();
  }
  std::string StateOf(const std::string& job) { return Json({"job", "show", job}).at("state"); }

  // Starts it, with `more` arguments for the process that has the broker; returns when it answers.
  void Serve(const std::vector<std::string>& more = {}) {
    std::vector<std::string> first{Postgres() ? "broker" : "up", "--log-level", "info"};
    first.insert(first.end(), more.begin(), more.end());
    processes_.push_back(Start(With(first)));
    if (Postgres()) processes_.push_back(Start(With({"worker", "--concurrency", "4"})));
    // It answers before its ledger is there.
    const auto ready = [&] { return Do({"status"}).code == 0 && Do({"job", "list"}).code == 0; };
    ASSERT_TRUE(Eventually(ready, kPatience)) << BrokerSaid();
  }
  std::string BrokerSaid() const { return processes_.empty() ? "" : processes_.front()->Err(); }
  void Stop() {
    for (; !processes_.empty(); processes_.pop_back()) {  // the worker before its broker
      processes_.back()->Signal(SIGTERM);
      EXPECT_EQ(processes_.back()->Wait(kPatience).code, 0) << processes_.back()->Err();
    }
  }

  // Statements for the ledger, past all that writes it.
  void Exec(const std::string& sql) {
    if (Postgres()) {
      const auto connection = database_->Connect();
      ASSERT_TRUE(connection->Exec("set search_path = millrace", TestDatabase::In(kPatience)));
      const auto done = connection->Exec(sql, TestDatabase::In(kPatience));
      ASSERT_TRUE(done) << done.error().message;
      return;
    }
    auto db = sqlite::Database::Open((home_ / "ledger.db").string(), {});
    ASSERT_TRUE(db) << db.error().message;
    const auto done = db->Exec(sql);
    ASSERT_TRUE(done) << done.error().message;
  }
  std::int64_t Count(const std::string& sql) {
    if (!Postgres()) return *sqlite::Database::Open((home_ / "ledger.db").string(), {})->QueryInt64(sql);
    const auto connection = database_->Connect();
    EXPECT_TRUE(connection->Exec("set search_path = millrace", TestDatabase::In(kPatience)));
    const auto rows = connection->Query(sql, TestDatabase::In(kPatience));
    EXPECT_TRUE(rows) << rows.error().message;
    return rows ? rows->Int(0, 0) : -1;
  }
  void ExpectTrailVerifies() {
    const CliResult audit = Do({"audit", "verify"});
    EXPECT_EQ(audit.code, 0) << audit.out << audit.err;
  }

  static constexpr Millis kPatience{60'000};

 private:
  static std::string EndpointOf(const wire::HeldPort& port) { return "tcp://127.0.0.1:" + std::to_string(port.number); }

  std::optional<TestDatabase> database_;
  wire::HeldPort clients_, workers_;
  std::vector<std::unique_ptr<CliProcess>> processes_;
};

inline std::string FormName(const ::testing::TestParamInfo<Form>& info) {
  return info.param == Form::kPostgres ? "Postgres" : "Embedded";
}

}  // namespace millrace::testing
