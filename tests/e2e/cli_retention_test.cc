// Retention by bytes, by hand and by a broker, with both ledgers: the oldest weeks go while the others take more, and nothing
// that is live or younger than it.
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/support/cli_installation.h"
#include "tests/support/fault_shim.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kJobsOfAWeek = 30;

class CliRetention : public CliInstallation {
 protected:
  struct Week {
    std::string begin;
    std::int64_t jobs = 0, bytes = 0;
  };
  std::vector<Week> Weeks() {
    std::vector<Week> weeks;
    for (const auto& row : Json({"ledger", "list"})) weeks.push_back({row.at("week"), row.at("jobs"), row.at("bytes")});
    return weeks;
  }
  static std::vector<std::int64_t> JobsOf(const std::vector<Week>& weeks) {
    std::vector<std::int64_t> jobs;
    for (const Week& week : weeks) jobs.push_back(week.jobs);
    return jobs;
  }
  // Submits as a client did so many weeks ago: ids have the time at which they were made.
  std::vector<std::string> Submit(int weeks_ago, std::vector<std::string> more) {
    auto past = ShimControl::Make(Path("clock"));
    EXPECT_TRUE(past) << past.error().message;
    past->StepClockTo(-std::chrono::hours{24 * 7 * weeks_ago});
    more.insert(more.begin(), {"job", "submit"});
    return Lines(more, {.env = past->Env()});
  }
  std::string Finished(int weeks_ago) {
    const nlohmann::json job{{"kind", "command"},
                             {"payload", {{"argv", {"true"}}, {"env", {{"PADDING", std::string(3'000, 'x')}}}}}};
    std::string batch;
    for (int i = 0; i < kJobsOfAWeek; ++i) batch += job.dump() + "\n";
    Write("batch", batch);
    const auto ids = Submit(weeks_ago, {"--batch", "batch", "--wait"});
    EXPECT_EQ(ids.size(), std::size_t{kJobsOfAWeek});
    return ids.empty() ? "" : ids.front();
  }
  // Of the tables of history, those that hold that week alone.
  std::int64_t PartitionsOf(const Week& week) {
    std::string day = week.begin;
    std::erase(day, '-');
    return Count("select count(*) from pg_class where relkind = 'r' and relname in ('job_" + day + "', 'run_" + day +
                 "', 'attempt_" + day + "', 'outcome_" + day + "')");
  }
  void ServeWithBytes(const std::string& bytes) { Serve({"--set", "ledger.retention_bytes=" + bytes}); }
};

TEST_P(CliRetention, ALedgerOverItsBytesLosesItsOldestFinishedWeeksAndNothingLive) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  if (Postgres()) Exec("select ensure_partitions(now() - interval '7 weeks', 7)");
  std::vector<std::string> finished;
  for (const int ago : {6, 5, 4, 3, 0}) finished.push_back(Finished(ago));
  ASSERT_EQ(Do({"queue", "pause", "held"}).code, 0);
  const auto held = Submit(4, {"--kind", "command", "--payload", R"({"argv": ["true"]})", "--queue", "held"});
  ASSERT_EQ(held.size(), 1U);
  const std::vector<Week> weeks = Weeks();
  ASSERT_EQ(JobsOf(weeks),
            (std::vector<std::int64_t>{kJobsOfAWeek, kJobsOfAWeek, kJobsOfAWeek + 1, kJobsOfAWeek, kJobsOfAWeek}));
  std::int64_t total = 0;
  for (const Week& week : weeks) {
    EXPECT_GT(week.bytes, kJobsOfAWeek * 3'000);
    total += week.bytes;
    if (Postgres()) {
      EXPECT_EQ(PartitionsOf(week), 4) << week.begin;
    }
  }

  // By hand: what fits stays; a byte too many costs the oldest week, whole and alone.
  const auto prune = [&](std::int64_t bytes, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"ledger", "prune", "--max-bytes", std::to_string(bytes) + "B"});
    return Json(more);
  };
  EXPECT_EQ(prune(2 * total).at(0).at("rows"), 0);
  EXPECT_EQ(Weeks().size(), 5U);
  const auto preview = prune(total - 1, {"--dry-run"});
  ASSERT_EQ(preview.size(), 1U);
  EXPECT_EQ(preview.at(0).at("week"), weeks[0].begin);
  const auto all = prune(1, {"--dry-run"});
  ASSERT_EQ(all.size(), 2U) << "neither the week of what is live nor a later one, the present one never";
  EXPECT_EQ(all.at(1).at("week"), weeks[1].begin);
  EXPECT_THAT(Do({"ledger", "prune", "--older-than", "1d", "--dry-run"}).err,
              AllOf(HasSubstr("2 weeks would go; nothing was removed"), HasSubstr("not further: job " + held[0] + " is live")));
  EXPECT_EQ(Weeks().size(), 5U) << "a preview removes nothing";
  EXPECT_GE(prune(total - 1).at(0).at("rows"), 2 * kJobsOfAWeek) << "jobs and outcomes";
  EXPECT_EQ(JobsOf(Weeks()), (std::vector<std::int64_t>{kJobsOfAWeek, kJobsOfAWeek + 1, kJobsOfAWeek, kJobsOfAWeek}));
  EXPECT_EQ(prune(total - 1).at(0).at("rows"), 0) << "what is left fits";
  const CliResult gone = Do({"job", "show", finished[0], "--payload"});
  EXPECT_EQ(gone.code, 3);
  EXPECT_THAT(gone.err, HasSubstr("it was pruned"));

  // By the broker, which can never keep to it: the week of what is live and the later ones stay.
  Stop();
  ASSERT_NO_FATAL_FAILURE(ServeWithBytes("1KiB"));
  EXPECT_TRUE(Eventually([&] { return BrokerSaid().contains("not further: job " + held[0] + " is live"); }, kPatience))
      << BrokerSaid();
  EXPECT_EQ(JobsOf(Weeks()), (std::vector<std::int64_t>{kJobsOfAWeek + 1, kJobsOfAWeek, kJobsOfAWeek}));
  EXPECT_EQ(Do({"job", "show", finished[1]}).code, 3);
  for (const std::size_t kept : {2U, 3U, 4U}) EXPECT_EQ(StateOf(finished[kept]), "succeeded");
  ASSERT_EQ(Do({"queue", "resume", "held"}).code, 0);
  EXPECT_TRUE(Eventually([&] { return StateOf(held[0]) == "succeeded"; }, kPatience)) << "it is as live as before";

  // When it has ended, its week and the next one go; the present one stays, however much it takes.
  Stop();
  ASSERT_NO_FATAL_FAILURE(ServeWithBytes("1KiB"));
  EXPECT_TRUE(Eventually([&] { return Weeks().size() == 1; }, kPatience)) << BrokerSaid();
  EXPECT_EQ(Weeks().at(0).begin, weeks.back().begin);
  EXPECT_EQ(Weeks().at(0).jobs, kJobsOfAWeek);
  EXPECT_EQ(StateOf(finished[4]), "succeeded");
  for (std::size_t i = 0; Postgres() && i < weeks.size(); ++i)
    EXPECT_EQ(PartitionsOf(weeks[i]), i + 1 < weeks.size() ? 0 : 4) << weeks[i].begin << ": dropped, not emptied";
  Stop();
  ExpectTrailVerifies();
}

INSTANTIATE_TEST_SUITE_P(Both, CliRetention, ::testing::Values(Form::kEmbedded, Form::kPostgres), FormName);

}  // namespace
}  // namespace millrace::testing
