// millrace-stage: runs one pipeline stage and exits. Frames on stdin and fd 3: common/model/stage_task.h.
//   millrace-stage            one StageOrder in, progress and one result out; or one question in, its answer out
//   millrace-stage --check    one check request in, one answer out: check/type_check.h
//   millrace-stage --nursery  makes children, each of which is a millrace-stage without arguments that is warm: nursery.h
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/history.h"
#include "common/base/tell.h"
#include "common/drivers/duckdb.h"
#include "common/model/question_frame.h"
#include "common/model/stage_task.h"
#include "worker/stage/check/type_check.h"
#include "worker/stage/frames.h"
#include "worker/stage/nursery.h"
#include "worker/stage/run_stage.h"
#include "worker/stage/stage_context.h"
#include "worker/stage/warm_up.h"

namespace millrace {
namespace {

constexpr int kOut = 3;

int Complain(const Error& error) {
  Tell("millrace-stage: {}\n", error.message);
  return 2;
}

// Closing an in-memory database frees everything row by row: leaving is faster and the kernel does the same.
[[noreturn]] void Leave(int code) {
  std::fflush(nullptr);
  ::_exit(code);
}

bool OrderWaits() {
  pollfd in{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  return ::poll(&in, 1, 0) > 0;
}

// One order in, its result out; or one question and its answer.
[[noreturn]] void Serve(duck::Connection& connection) {
  (void)history::On();  // its file is out of reach once the stage is confined
  if (auto ready = WriteFrame(kOut, R"({"ready":true})"); !ready) Leave(Complain(ready.error()));
  const auto frame = ReadFrame(STDIN_FILENO);
  if (!frame) Leave(Complain(frame.error()));
  if (const auto question = QuestionInFrame(*frame)) {
    const auto answered = WriteFrame(kOut, AnswerFrame(CheckPipelineJson(connection, *question)));
    Leave(answered ? 0 : Complain(answered.error()));
  }
  DeferAfterResult();
  const SystemClock clock;
  ProgressWriter progress(kOut, clock);
  StageResult result;
  if (const auto order = StageOrderFromJson(*frame)) {
    result = RunStage(*order, connection, [&](std::int64_t rows, std::int64_t bytes) { progress.Report(rows, bytes); });
  } else {
    result = FailedStage({"invalid_order", order.error().message});
  }
  progress.Close();
  const auto written = WriteFrame(kOut, fmt::format(R"({{"result":{}}})", ToJson(result)));
  RunAfterResult();
  Leave(written ? 0 : Complain(written.error()));
}

int RunOne(bool check) {
  auto database = duck::Database::Open({.threads = 1});
  if (!database) return Complain(database.error());
  auto connection = database->Connect();
  if (!connection) return Complain(connection.error());
  if (!check) {
    WarmUp(*connection, OrderWaits);
    Serve(*connection);
  }
  const auto frame = ReadFrame(STDIN_FILENO);
  if (!frame) return Complain(frame.error());
  const auto answered = WriteFrame(kOut, CheckPipelineJson(*connection, *frame));
  Leave(answered ? 0 : Complain(answered.error()));
}

int RunNursery() {
  auto nursery = Nursery::Open();
  if (!nursery) return Complain(nursery.error());
  auto database = duck::Database::Open({.threads = 1});
  if (!database) return Complain(database.error());
  auto connection = database->Connect();
  if (!connection) return Complain(connection.error());
  const auto child = [&] {
    // The engine seeds random() and gen_random_uuid() when a connection opens: siblings must not share one.
    auto own = database->Connect();
    if (!own) Leave(Complain(own.error()));
    Serve(*own);
  };
  Result<void> answered;
  // Who asks before it is warm gets a child that is as warm as the nursery is then.
  WarmUp(*connection, [&] {
    if (answered) answered = nursery->AnswerWaiting(child);
    return !answered;
  });
  if (answered) answered = nursery->SayWarm();
  if (answered) answered = nursery->AnswerAll(child);
  return Complain(answered.error());
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  if (argc > 2 || (!mode.empty() && mode != "--check" && mode != "--nursery")) {
    millrace::Tell(
        "millrace-stage is started by a Millrace worker or by 'millrace check'; usage: millrace-stage [--check | "
        "--nursery]\n");
    return 64;
  }
  ::signal(SIGPIPE, SIG_IGN);
  return mode == "--nursery" ? millrace::RunNursery() : millrace::RunOne(mode == "--check");
}
