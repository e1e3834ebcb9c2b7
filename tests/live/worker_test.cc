// A real worker with real child processes, against a broker that the test plays over a socket.
#include "worker/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "common/base/random.h"
#include "common/wire/codec.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::worker {
namespace {

using ::testing::HasSubstr;
using wire::Message;
namespace fs = std::filesystem;

constexpr auto kPatience = Millis{15'000};
constexpr auto kBeat = Millis{100};

// True for a process that runs; a zombie that its new parent has not reaped does not.
bool Alive(pid_t pid) {
  std::ifstream stat(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(stat, line)) return false;
  const auto paren = line.rfind(')');
  return paren != std::string::npos && line.substr(paren + 2, 1) != "Z";
}

class WorkerLiveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / ("mr_worker_" + Uuid{ids_.Next()}.ToString());
    fs::create_directories(dir_ / "lake");
    fs::create_directories(dir_ / "base");
    names_ = wire::MakeLocalNames();
    transport_ = *wire::MakeZmtpTransport(names_);
    server_ = *transport_->Bind("tcp://127.0.0.1:0");
    options_.name = "w1";
    options_.id = ids_.Next<WorkerId>();
    options_.brokers = {server_->Endpoint()};
    options_.concurrency = 2;
    options_.lake = dir_ / "lake";
    options_.scratch_root = dir_ / "scratch";
    options_.connections = {{"warehouse", "sqlite", "/tmp/warehouse.db"}};
    options_.stage_program = MILLRACE_BIN_DIR "/fake_stage";
    options_.heartbeat = kBeat;
  }
  void TearDown() override {
    if (thread_.joinable()) {
      worker_->RequestDrain();
      worker_->RequestDrain();
      Join();
    }
    std::error_code error;
    fs::remove_all(dir_, error);
  }

  void StartWorker() {
    worker_ = std::make_unique<Worker>(options_, clock_, *wire::MakeZmtpTransport(names_));
    thread_ = std::thread([this] {
      result_ = worker_->Run();
      ended_ = true;
    });
    Until([this] { return welcomed_; }, "a hello");
  }

  // Plays the broker until `done`, answering what a broker answers at once.
  template <class DoneFn>
  void Until(DoneFn done, const char* what) {
    const MonoTime end = clock_.Now() + kPatience;
    while (!done()) {
      ASSERT_LT(clock_.Now(), end) << "waited for " << what;
      transport_->Wait(10ms);
      while (auto got = server_->Receive()) Handle(*got);
      if (beating_ && clock_.Now() - beat_at_ >= kBeat && !peer_.empty()) {
        beat_at_ = clock_.Now();
        Tell(wire::BrokerBeat{true});
      }
    }
  }

  void Handle(const wire::Received& got) {
    const auto message = wire::Decode(got.frame);
    ASSERT_TRUE(message) << message.error().message;
    peer_ = got.peer;
    if (const auto* hello = std::get_if<wire::Hello>(&*message)) {
      hello_ = *hello;
      ++hellos_;
      if (welcoming_) {
        welcomed_ = true;
        Tell(wire::Welcome{"b1", static_cast<std::uint32_t>(kBeat.count()), lease_ms_});
      }
    } else if (const auto* beat = std::get_if<wire::Beat>(&*message)) {
      beats_.push_back(*beat);
    } else if (const auto* ended = std::get_if<wire::Ended>(&*message)) {
      credit_ = ended->credit_limit;
      wire::EndedReply reply;
      for (const auto& report : ended->reports) {
        ++report_copies_;
        if (!reports_.contains(report.job)) reports_[report.job] = report;
        reply.items.push_back({report.job, report.token, true, ""});
      }
      if (answering_) Tell(reply);
    } else if (const auto* orphans = std::get_if<wire::Orphans>(&*message)) {
      orphans_ = orphans->items;
      if (adopting_) Tell(wire::Adopt{orphans_});
    } else if (std::holds_alternative<wire::Goodbye>(*message)) {
      goodbye_ = true;
    }
  }

  void Tell(const Message& message) { (void)server_->Send(peer_, wire::Encode(message)); }

  wire::Grant::Job Stage(const std::string& name, std::uint32_t timeout_ms = 0) {
    StageTask task;
    task.pipeline = "p";
    task.run = ids_.Next<RunId>();
    task.job = ids_.Next<JobId>();
    task.effect = "e";
    task.stage.name = name;
    task.stage.work = TransformSpec{"select 1"};
    task.base_dir = dir_ / "base";
    return {task.job, Token{1}, std::string(kJobKindStage), ToJson(task), timeout_ms, 1};
  }

  wire::Grant::Job Command(std::vector<std::string> argv, std::uint32_t timeout_ms = 0) {
    CommandTask task;
    task.pipeline = "p";
    task.stage = "run_it";
    task.run = ids_.Next<RunId>();
    task.job = ids_.Next<JobId>();
    task.command.argv = std::move(argv);
    task.command.env = {{"COLOUR", "blue"}};
    task.base_dir = dir_ / "base";
    return {task.job, Token{7}, std::string(kJobKindCommand), ToJson(task), timeout_ms, 1};
  }
  wire::Grant::Job Shell(const std::string& script, std::uint32_t timeout_ms = 0) {
    return Command({"sh", "-c", script}, timeout_ms);
  }

  AttemptReport Await(JobId job) {
    Until([&] { return reports_.contains(job); }, "a report");
    return reports_[job];
  }
  AttemptReport RunJob(const wire::Grant::Job& job) {
    Tell(wire::Grant{{job}});
    return Await(job.id);
  }

  // The number that a command wrote into base/NAME.
  pid_t AwaitPid(const std::string& name) {
    pid_t pid = 0;
    Until([&] { return (std::ifstream(dir_ / "base" / name) >> pid) && pid > 0; }, "a pid file");
    return pid;
  }

  void Join() {
    const MonoTime end = clock_.Now() + kPatience;
    while (!ended_ && clock_.Now() < end) {
      transport_->Wait(10ms);
      while (auto got = server_->Receive()) Handle(*got);
    }
    thread_.join();
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  fs::path dir_;
  std::shared_ptr<wire::LocalNames> names_;
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ServerSocket> server_;
  WorkerOptions options_;
  std::unique_ptr<Worker> worker_;
  std::thread thread_;
  Result<void> result_;
  std::atomic<bool> ended_{false};
  wire::PeerId peer_;
  wire::Hello hello_;
  std::deque<wire::Beat> beats_;
  std::vector<wire::Hello::Held> orphans_;  // of the latest such message
  std::map<JobId, AttemptReport> reports_;
  int hellos_ = 0, report_copies_ = 0;
  std::uint64_t credit_ = 0;
  std::uint32_t lease_ms_ = 3000;
  MonoTime beat_at_{};
  bool welcomed_ = false, welcoming_ = true, answering_ = true, beating_ = true, adopting_ = false, goodbye_ = false;
};

TEST_F(WorkerLiveTest, SaysHelloAndRunsAStage) {
  StartWorker();
  EXPECT_EQ(hello_.name, "w1");
  EXPECT_EQ(hello_.concurrency, 2u);
  EXPECT_EQ(hello_.credit_limit, 2u);
  EXPECT_EQ(hello_.kinds, (std::vector<std::string>{"stage", "command"}));
  const auto report = RunJob(Stage("ok"));
  EXPECT_EQ(report.end, AttemptEnd::kSucceeded) << report.error << report.log_tail;
  EXPECT_EQ(report.worker, "w1");
  EXPECT_LE(report.started_at, report.finished_at);
  const auto result = StageResultFromJson(report.result);
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result->rows.loaded, 7);
  EXPECT_EQ(credit_, 3u);  // one taken, two free
}

TEST_F(WorkerLiveTest, TheOrderCarriesTokenLakeScratchAndConnection) {
  StartWorker();
  auto job = Stage("inspect");
  auto task = *StageTaskFromJson(job.payload);
  task.stage.work = LoadSpec{.from = "x", .to = "warehouse", .table = "t", .path = {}, .key = {}};
  job.payload = ToJson(task);
  job.token = Token{4242};
  const auto report = RunJob(job);
  ASSERT_EQ(report.end, AttemptEnd::kSucceeded) << report.error << report.log_tail;
  const auto result = *StageResultFromJson(report.result);
  EXPECT_EQ(result.bytes_read, 4242);
  EXPECT_EQ(result.plan, "/tmp/warehouse.db");
  EXPECT_EQ(result.manifest, options_.lake);
  EXPECT_THAT(result.target, HasSubstr(options_.scratch_root));
  Until([&] { return !fs::exists(result.target); }, "the scratch folder to be removed");
}

TEST_F(WorkerLiveTest, AnUnknownConnectionIsNotRetriedAndNamesTheKnown) {
  StartWorker();
  auto job = Stage("ok");
  auto task = *StageTaskFromJson(job.payload);
  task.stage.work = LoadSpec{.from = "x", .to = "wharehouse", .table = "t", .path = {}, .key = {}};
  job.payload = ToJson(task);
  const auto report = RunJob(job);
  EXPECT_EQ(report.end, AttemptEnd::kFailed);
  EXPECT_EQ(report.error_class, "unknown_connection");
  EXPECT_FALSE(report.retryable);
  EXPECT_EQ(report.error, "worker 'w1' has no connection 'wharehouse'; it knows 'warehouse'");
}

TEST_F(WorkerLiveTest, FailedStagesKeepTheirClass) {
  StartWorker();
  const auto final_one = RunJob(Stage("fail"));
  EXPECT_EQ(final_one.end, AttemptEnd::kFailed);
  EXPECT_EQ(final_one.error_class, "check_failed");
  EXPECT_EQ(final_one.error, "3 rows are null");
  EXPECT_FALSE(final_one.retryable);
  EXPECT_TRUE(RunJob(Stage("fail_later")).retryable);
}

TEST_F(WorkerLiveTest, CrashesAreReportedWithSignalExitCodeAndLog) {
  StartWorker();
  const auto segv = RunJob(Stage("segv"));
  EXPECT_EQ(segv.end, AttemptEnd::kCrashed);
  EXPECT_EQ(segv.signal, SIGSEGV);
  EXPECT_THAT(segv.log_tail, HasSubstr("about to crash"));
  const auto silent = RunJob(Stage("silent"));
  EXPECT_EQ(silent.end, AttemptEnd::kCrashed);
  EXPECT_EQ(silent.exit_code, 3);
  for (const char* name : {"garbage", "nonsense"}) {
    const auto bad = RunJob(Stage(name));
    EXPECT_EQ(bad.end, AttemptEnd::kCrashed) << name;
    EXPECT_EQ(bad.error_class, "bad_stage_message") << name;
  }
  EXPECT_EQ(RunJob(Stage("ok")).end, AttemptEnd::kSucceeded);
}

TEST_F(WorkerLiveTest, AStageIsKilledAtItsDeadline) {
  StartWorker();
  const auto report = RunJob(Stage("hang", 200));
  EXPECT_EQ(report.end, AttemptEnd::kTimedOut);
  EXPECT_EQ(report.error_class, "timed_out");
  EXPECT_EQ(report.signal, SIGKILL);
  EXPECT_GE(report.finished_at - report.started_at, 190ms);
}

TEST_F(WorkerLiveTest, AStageThatDoesNotExitAfterItsResultHasSucceeded) {
  StartWorker();
  const auto report = RunJob(Stage("lingers"));
  EXPECT_EQ(report.end, AttemptEnd::kSucceeded);
  EXPECT_EQ(report.signal, 0);
  EXPECT_LT(report.finished_at - report.started_at, 16s) << "nobody waits for a stage that has published to leave";
}

TEST_F(WorkerLiveTest, AFloodOnStderrKeepsTheTailAndTheHeartbeats) {
  StartWorker();
  const auto report = RunJob(Stage("spam"));
  EXPECT_EQ(report.end, AttemptEnd::kSucceeded) << report.error;
  EXPECT_LE(report.log_tail.size(), kLogTailBytesMax);
  EXPECT_THAT(report.log_tail, HasSubstr("49999\nthe last line"));
}

TEST_F(WorkerLiveTest, ProgressIsInTheBeats) {
  StartWorker();
  const auto job = Stage("slow");
  Tell(wire::Grant{{job}});
  Until([&] { return !beats_.empty() && !beats_.back().progress.empty(); }, "progress");
  EXPECT_EQ(beats_.back().progress[0].job, job.id);
  EXPECT_GE(beats_.back().progress[0].rows, 100);
  EXPECT_THAT(beats_.back().held, ::testing::Contains(wire::Hello::Held{job.id, Token{1}}));
  EXPECT_EQ(Await(job.id).end, AttemptEnd::kSucceeded);
}

TEST_F(WorkerLiveTest, WhatACommandWritesAboutItsProgressIsInTheBeats) {
  StartWorker();
  const auto job = Shell(
      "echo '7 4096' > $MILLRACE_PROGRESS; until [ -e worse ]; do sleep 0.01; done; echo half >> $MILLRACE_PROGRESS;"
      "until [ -e better ]; do sleep 0.01; done; echo '9 5000' >> $MILLRACE_PROGRESS; until [ -e end ]; do sleep 0.01; done");
  const auto silent = Shell("until [ -e end ]; do sleep 0.01; done");
  Tell(wire::Grant{{job, silent}});
  using Progress = std::vector<wire::Beat::Progress>;
  Until([&] { return !beats_.empty() && beats_.back().progress == Progress{{job.id, 7, 4096}}; }, "progress");
  EXPECT_EQ(beats_.back().held.size(), 2U);
  std::ofstream(dir_ / "base/worse") << "";
  const std::size_t before = beats_.size();
  Until([&] { return beats_.size() >= before + 3; }, "more beats");
  EXPECT_EQ(beats_.back().progress, (Progress{{job.id, 7, 4096}})) << "what is no progress changes nothing";
  std::ofstream(dir_ / "base/better") << "";
  Until([&] { return beats_.back().progress == Progress{{job.id, 9, 5000}}; }, "further progress");
  std::ofstream(dir_ / "base/end") << "";
  EXPECT_EQ(Await(job.id).end, AttemptEnd::kSucceeded);
  EXPECT_EQ(Await(silent.id).end, AttemptEnd::kSucceeded);
}

TEST_F(WorkerLiveTest, MalformedPayloadsAndUnknownKindsAreNotRetried) {
  StartWorker();
  for (auto job : {Stage("ok"), Command({"true"})}) {
    job.payload = "{\"nonsense\":";
    const auto report = RunJob(job);
    EXPECT_EQ(report.end, AttemptEnd::kFailed);
    EXPECT_EQ(report.error_class, "malformed_payload");
    EXPECT_FALSE(report.retryable);
  }
  auto other = Stage("ok");
  other.id = ids_.Next<JobId>();
  EXPECT_EQ(RunJob(other).error_class, "malformed_payload");  // the payload names another job
  auto odd = Stage("ok");
  odd.kind = "resize_image";
  EXPECT_EQ(RunJob(odd).error_class, "unknown_kind");
}

TEST_F(WorkerLiveTest, CommandsReportTheirExitCode) {
  StartWorker();
  const auto ok = RunJob(Shell("echo out; echo err >&2"));
  EXPECT_EQ(ok.end, AttemptEnd::kSucceeded);
  EXPECT_EQ(ok.log_tail, "out\nerr\n");
  EXPECT_TRUE(StageResultFromJson(ok.result)->ok);
  const auto failed = RunJob(Shell("echo why; exit 4"));
  EXPECT_EQ(failed.end, AttemptEnd::kFailed);
  EXPECT_EQ(failed.exit_code, 4);
  EXPECT_EQ(failed.error_class, "command_failed");
  EXPECT_TRUE(failed.retryable);
  EXPECT_EQ(RunJob(Shell("exit 75")).error_class, "temporary_failure");
  const auto killed = RunJob(Shell("kill -9 $$"));
  EXPECT_EQ(killed.end, AttemptEnd::kCrashed);
  EXPECT_EQ(killed.signal, SIGKILL);
  const auto missing = RunJob(Command({"no-such-program-here"}));
  EXPECT_EQ(missing.end, AttemptEnd::kFailed);
  EXPECT_EQ(missing.error_class, "command_not_startable");
  EXPECT_EQ(missing.error, "cannot start 'no-such-program-here': No such file or directory");
}

TEST_F(WorkerLiveTest, CommandsGetAMinimalEnvironmentAndTheirFolder) {
  ::setenv("MILLRACE_SECRET_OF_THE_WORKER", "leak", 1);
  StartWorker();
  const auto job = Shell("pwd; env; ls -l /proc/self/fd | wc -l");
  const auto report = RunJob(job);
  ::unsetenv("MILLRACE_SECRET_OF_THE_WORKER");
  EXPECT_THAT(report.log_tail, HasSubstr((dir_ / "base").string() + "\n"));
  EXPECT_THAT(report.log_tail, HasSubstr("COLOUR=blue\n"));
  EXPECT_THAT(report.log_tail, HasSubstr("MILLRACE_TOKEN=7\n"));
  EXPECT_THAT(report.log_tail, HasSubstr("MILLRACE_JOB=" + job.id.ToString() + "\n"));
  EXPECT_THAT(report.log_tail, HasSubstr("MILLRACE_STAGE=run_it\n"));
  EXPECT_THAT(report.log_tail, HasSubstr("MILLRACE_PIPELINE=p\n"));
  EXPECT_THAT(report.log_tail, HasSubstr("MILLRACE_RUN="));
  EXPECT_THAT(report.log_tail, ::testing::Not(HasSubstr("leak")));
  EXPECT_THAT(report.log_tail, ::testing::EndsWith("\n5\n"));  // "total", 0, 1, 2 and the folder itself: nothing inherited
}

TEST_F(WorkerLiveTest, ATimeoutKillsACommandThatIgnoresSigtermAndItsGrandchildren) {
  StartWorker();
  const auto job = Shell("trap '' TERM; sleep 600 & echo $! > grandchild; wait; wait; sleep 600", 300);
  Tell(wire::Grant{{job}});
  const pid_t grandchild = AwaitPid("grandchild");
  ASSERT_TRUE(Alive(grandchild));
  const auto report = Await(job.id);
  EXPECT_EQ(report.end, AttemptEnd::kTimedOut);
  EXPECT_GE(report.finished_at - report.started_at, 2200ms);  // deadline and grace
  EXPECT_FALSE(Alive(grandchild));
}

TEST_F(WorkerLiveTest, WhatASuccessfulCommandLeavesBehindIsKilled) {
  StartWorker();
  const auto report = RunJob(Shell("sleep 600 & echo $! > left; exit 0"));
  EXPECT_EQ(report.end, AttemptEnd::kSucceeded);
  EXPECT_FALSE(Alive(AwaitPid("left")));
}

TEST_F(WorkerLiveTest, ACancelledCommandMayCleanUp) {
  StartWorker();
  const auto job = Shell("trap 'echo cleaning; exit 9' TERM; echo $$ > pid; while :; do sleep 0.05; done");
  Tell(wire::Grant{{job}});
  AwaitPid("pid");
  Tell(wire::Revoke{{{job.id, job.token, "cancelled"}}});
  const auto report = Await(job.id);
  EXPECT_EQ(report.end, AttemptEnd::kCancelled);
  EXPECT_EQ(report.error_class, "cancelled");
  EXPECT_THAT(report.log_tail, HasSubstr("cleaning"));
}

TEST_F(WorkerLiveTest, ACancelledCommandThatIgnoresTheSignalIsKilledWithItsChildren) {
  StartWorker();
  const auto job = Shell(
      "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $! > child; echo $$ > pid; while :; do sleep 1; done");
  Tell(wire::Grant{{job}});
  const pid_t pid = AwaitPid("pid"), child = AwaitPid("child");
  Tell(wire::Revoke{{{job.id, job.token, "cancelled"}}});
  const auto report = Await(job.id);
  EXPECT_EQ(report.end, AttemptEnd::kCancelled);
  EXPECT_EQ(report.signal, SIGKILL);
  EXPECT_FALSE(Alive(pid));
  EXPECT_FALSE(Alive(child));
}

TEST_F(WorkerLiveTest, AFenceOfSomethingWithoutASinkEndsAtOnce) {
  StartWorker();
  auto job = Shell("touch ran");
  job.fence_only = true;
  const auto report = RunJob(job);
  EXPECT_EQ(report.end, AttemptEnd::kCancelled);
  EXPECT_FALSE(std::filesystem::exists("ran"));
}

TEST_F(WorkerLiveTest, ARevokedAttemptIsKilledAtOnce) {
  StartWorker();
  const auto job = Shell("trap '' TERM; echo $$ > pid; while :; do sleep 1; done");
  Tell(wire::Grant{{job}});
  const pid_t pid = AwaitPid("pid");
  Tell(wire::Revoke{{{job.id, Token{6}, "another attempt"}}});  // not ours: ignored
  Tell(wire::Revoke{{{job.id, job.token, "lease expired"}}});
  const auto report = Await(job.id);
  EXPECT_EQ(report.end, AttemptEnd::kHandedBack);
  EXPECT_EQ(report.error_class, "revoked");
  EXPECT_FALSE(Alive(pid));
}

TEST_F(WorkerLiveTest, ASigkilledChildIsACrashAndTheNextJobRuns) {
  StartWorker();
  const auto job = Shell("echo $$ > pid; exec sleep 600");
  Tell(wire::Grant{{job}});
  ::kill(AwaitPid("pid"), SIGKILL);
  const auto report = Await(job.id);
  EXPECT_EQ(report.end, AttemptEnd::kCrashed);
  EXPECT_EQ(report.signal, SIGKILL);
  EXPECT_EQ(RunJob(Shell("true")).end, AttemptEnd::kSucceeded);
}

TEST_F(WorkerLiveTest, ReportsAreRepeatedUntilAnsweredAndHeldMeanwhile) {
  StartWorker();
  answering_ = false;
  const auto job = Shell("true");
  Tell(wire::Grant{{job}});
  Until([&] { return report_copies_ >= 3; }, "three copies of one report");
  beats_.clear();
  Until([&] { return !beats_.empty(); }, "a beat");
  EXPECT_THAT(beats_.back().held, ::testing::Contains(wire::Hello::Held{job.id, job.token}));
  answering_ = true;
  Until([&] { return !beats_.empty() && beats_.back().held.empty(); }, "the attempt to leave the held list");
}

TEST_F(WorkerLiveTest, ASilentBrokerEndsWhatItGranted) {
  lease_ms_ = 500;
  StartWorker();
  const auto job = Shell("echo $$ > pid; exec sleep 600");
  Tell(wire::Grant{{job}});
  const pid_t pid = AwaitPid("pid");
  beating_ = welcoming_ = false;
  const int hellos = hellos_;
  Until([&] { return !Alive(pid) && hellos_ > hellos; }, "the attempt to be killed and a new hello");
  EXPECT_TRUE(hello_.held.empty()) << "its lease is over";
  welcoming_ = beating_ = adopting_ = true;  // who comes back may still want to know how it ended
  EXPECT_EQ(Await(job.id).error_class, "lease_lost");
  EXPECT_EQ(orphans_, (std::vector<wire::Hello::Held>{{job.id, job.token}}));
}

TEST_F(WorkerLiveTest, DrainFinishesWhatRunsAndSaysGoodbye) {
  StartWorker();
  const auto job = Shell("echo $$ > pid; sleep 0.5; echo finished");
  Tell(wire::Grant{{job}});
  AwaitPid("pid");
  worker_->RequestDrain();
  Until([&] { return !beats_.empty() && beats_.back().draining; }, "a draining beat");
  const auto late = Shell("true");
  Tell(wire::Grant{{late}});
  EXPECT_EQ(Await(late.id).end, AttemptEnd::kHandedBack);
  EXPECT_EQ(Await(job.id).end, AttemptEnd::kSucceeded);
  Join();
  EXPECT_TRUE(result_) << result_.error().message;
  Until([&] { return goodbye_; }, "a goodbye");
}

TEST_F(WorkerLiveTest, AHeldWorkerAnswersQuestionsAndTakesJobsOnlyAfterRelease) {
  options_.held = true;
  std::atomic<int> goodbyes{0};
  options_.on_goodbye = [&] { ++goodbyes; };
  worker_ = std::make_unique<Worker>(options_, clock_, *wire::MakeZmtpTransport(names_));
  auto early = worker_->Ask("[1]");  // before Run
  thread_ = std::thread([this] {
    result_ = worker_->Run();
    ended_ = true;
  });
  Until([this] { return welcomed_; }, "a hello");
  EXPECT_EQ(hello_.concurrency, 2u);
  EXPECT_EQ(hello_.credit_limit, 0u);
  auto dies = worker_->Ask("\"die\"");
  const auto ready = [](auto& answer) { return answer.wait_for(Millis{0}) == std::future_status::ready; };
  Until([&] { return ready(early) && ready(dies) && beats_.size() >= 2; }, "answers and beats");
  EXPECT_EQ(early.get().value_or("none"), "[1]");
  const auto died = dies.get();
  ASSERT_FALSE(died);
  EXPECT_EQ(died.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(died.error().message, HasSubstr("ended without an answer, with code 4"));
  for (const auto& beat : beats_) EXPECT_EQ(beat.credit_limit, 0u);
  EXPECT_EQ(worker_->running(), 0u);

  worker_->Release(1);
  Until([&] { return beats_.back().credit_limit == 2; }, "credit");
  EXPECT_EQ(RunJob(Stage("ok")).end, AttemptEnd::kSucceeded);
  EXPECT_EQ(RunJob(Stage("ok")).end, AttemptEnd::kSucceeded) << "one more than it was told to expect";
  EXPECT_EQ(goodbyes, 0);
  worker_->RequestDrain();
  Join();
  EXPECT_EQ(goodbyes, 1);
  auto late = worker_->Ask("[2]").get();
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kCancelled);
}

TEST_F(WorkerLiveTest, WhoAsksAWorkerThatEndsIsNotLeftWaiting) {
  options_.stage_program = "/bin/cat";  // reads its question and says nothing
  options_.warm_stages = 0;
  StartWorker();
  auto answer = worker_->Ask("[1]");
  worker_->RequestDrain();
  Join();
  ASSERT_EQ(answer.wait_for(kPatience), std::future_status::ready);
  EXPECT_FALSE(answer.get());

  options_.stage_program = dir_ / "missing";
  ended_ = welcomed_ = false;
  StartWorker();
  auto missing = worker_->Ask("[1]");
  Until([&] { return missing.wait_for(Millis{0}) == std::future_status::ready; }, "an error");
  const auto error = missing.get();
  ASSERT_FALSE(error);
  EXPECT_EQ(error.error().code, ErrorCode::kUnavailable);
}

TEST_F(WorkerLiveTest, TheBrokerMayGoWhileAStageThatHasPublishedStillLeaves) {
  std::optional<bool> lives_at_goodbye;  // its thread's until `told`
  std::atomic<bool> told = false;
  pid_t stage = -1;
  options_.on_goodbye = [&] {
    lives_at_goodbye = Alive(stage);
    told = true;
  };
  options_.warm_stages = 0;
  StartWorker();
  const auto job = Stage("lingers");  // says its result, and stays until it is killed
  EXPECT_EQ(RunJob(job).end, AttemptEnd::kSucceeded);
  for (const auto& entry : fs::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string line;
    if (!std::getline(file, line) || !line.contains("(fake_stage)")) continue;
    int pid = 0, parent = 0;
    char state = 0;
    std::istringstream(line) >> pid;
    std::istringstream(line.substr(line.rfind(')') + 1)) >> state >> parent;
    if (parent == ::getpid()) stage = pid;
  }
  ASSERT_GT(stage, 0);
  worker_->RequestDrain();
  Until([&] { return goodbye_ && told; }, "a goodbye");
  EXPECT_TRUE(Alive(stage));
  ::kill(stage, SIGKILL);
  Join();
  EXPECT_EQ(lives_at_goodbye, true);
  EXPECT_FALSE(Alive(stage));
}

TEST_F(WorkerLiveTest, ASecondDrainHandsBackAtOnce) {
  StartWorker();
  const auto job = Shell("echo $$ > pid; exec sleep 600");
  Tell(wire::Grant{{job}});
  const pid_t pid = AwaitPid("pid");
  worker_->RequestDrain();
  worker_->RequestDrain();
  const auto report = Await(job.id);
  EXPECT_EQ(report.end, AttemptEnd::kHandedBack);
  EXPECT_EQ(report.error_class, "drained");
  Join();
  EXPECT_FALSE(Alive(pid));
}

TEST_F(WorkerLiveTest, DrainGivesUpAfterItsTimeout) {
  options_.drain_timeout = 200ms;
  StartWorker();
  const auto job = Stage("hang");
  Tell(wire::Grant{{job}});
  Until([&] { return worker_->running() == 1; }, "the stage to run");
  worker_->RequestDrain();
  EXPECT_EQ(Await(job.id).end, AttemptEnd::kHandedBack);
  Join();
  EXPECT_TRUE(result_);
}

// As the worker counts them and as the jobs see each other. What waits for so long that it is handed back (on a busy machine
// the last ones do) has not run, and is granted again as another job.
TEST_F(WorkerLiveTest, NoMoreThanConcurrencyRunAtATime) {
  constexpr std::size_t kJobs = 12;
  StartWorker();
  const auto job = [&] { return Shell("mkdir run.$$; ls -d run.* | wc -l >> seen; sleep 0.1; rmdir run.$$"); };
  wire::Grant grant;
  for (std::size_t i = 0; i < kJobs; ++i) grant.jobs.push_back(job());
  Tell(grant);
  std::size_t most = 0, succeeded = 0;
  std::set<JobId> handled;
  Until(
      [&] {
        most = std::max(most, worker_->running());
        for (const auto& [id, report] : reports_) {
          if (!handled.insert(id).second) continue;
          if (report.end == AttemptEnd::kSucceeded) {
            ++succeeded;
          } else {
            EXPECT_EQ(report.error_class, "not_started") << report.error;
            Tell(wire::Grant{{job()}});
          }
        }
        return succeeded == kJobs || HasFailure();
      },
      "as many jobs that ran");
  EXPECT_GE(most, 1u);
  EXPECT_LE(most, 2u);
  std::ifstream seen(dir_ / "base" / "seen");
  std::size_t lines = 0;
  for (std::size_t running = 0; seen >> running; ++lines) EXPECT_LE(running, 2u);
  EXPECT_EQ(lines, kJobs);
}

TEST_F(WorkerLiveTest, AMissingStageProgramFailsStagesButNotTheWorker) {
  options_.stage_program = dir_ / "not-there";
  StartWorker();
  const auto report = RunJob(Stage("ok"));
  EXPECT_EQ(report.end, AttemptEnd::kFailed);
  EXPECT_EQ(report.error_class, "stage_program_unavailable");
  EXPECT_TRUE(report.retryable);
  EXPECT_EQ(RunJob(Shell("true")).end, AttemptEnd::kSucceeded);
}

TEST_F(WorkerLiveTest, AWarmStageIsFast) {
  options_.concurrency = 1;
  StartWorker();
  RunJob(Stage("ok"));
  Micros best = 10s;
  for (int i = 0; i < 10; ++i) {
    const auto job = Stage("ok");
    Until([n = 0]() mutable { return ++n > 5; }, "some turns for the replacement to start");
    const MonoTime start = clock_.Now();
    RunJob(job);
    best = std::min(best, std::chrono::duration_cast<Micros>(clock_.Now() - start));
  }
  RecordProperty("best_stage_us", std::to_string(best.count()));
  EXPECT_LT(best, 100ms);
}

TEST(WorkerOptionsTest, BadOptionsAreRefused) {
  const SystemClock clock;
  const auto run = [&](WorkerOptions options) { return Worker(std::move(options), clock, *wire::MakeZmtpTransport()).Run(); };
  WorkerOptions good;
  good.name = "w";
  good.id = WorkerId{*Uuid::Parse("01890a5d-ac96-774b-bcce-b302099a8057")};
  good.brokers = {"tcp://10.1.2.3:7600"};
  good.kinds = {"command"};
  EXPECT_THAT(run(good).error().message, HasSubstr("is not on this host"));
  auto bad = good;
  bad.name.clear();
  EXPECT_THAT(run(bad).error().message, HasSubstr("worker name"));
  bad = good, bad.brokers.clear();
  EXPECT_THAT(run(bad).error().message, HasSubstr("brokers"));
  bad = good, bad.concurrency = 0;
  EXPECT_THAT(run(bad).error().message, HasSubstr("concurrency"));
  bad = good, bad.kinds = {"stage"};
  EXPECT_THAT(run(bad).error().message, HasSubstr("stage_program"));
}

}  // namespace
}  // namespace millrace::worker
