// Stands in for millrace-stage in worker tests: takes one order and behaves as the stage's name says. With --nursery it is a
// nursery of such; FAKE_NURSERY in its environment makes it a bad one.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

#include "common/model/question_frame.h"
#include "common/model/stage_task.h"
#include "worker/stage/nursery.h"
#include "worker/stage_frames.h"

namespace {

using namespace millrace;

void Write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(3, bytes.data(), bytes.size());
    if (wrote <= 0) ::_exit(9);
    bytes.remove_prefix(static_cast<std::size_t>(wrote));
  }
}
void Send(const std::string& json) { Write(worker::EncodeStageFrame(json)); }

[[noreturn]] void Finish(const StageResult& result) {
  Send("{\"result\":" + ToJson(result) + "}");
  ::_exit(0);
}

StageOrder ReadOrder() {
  worker::StageFrameParser parser;
  char buffer[65536];
  while (true) {
    auto frame = parser.Next();
    if (!frame) ::_exit(8);
    if (const auto question = *frame ? QuestionInFrame(**frame) : std::nullopt) {
      if (*question == "\"die\"") ::_exit(4);
      Send(AnswerFrame(*question));
      ::_exit(0);
    }
    if (*frame) {
      auto order = StageOrderFromJson(**frame);
      if (!order) {
        std::fprintf(stderr, "bad order: %s\n", order.error().message.c_str());
        ::_exit(7);
      }
      return *order;
    }
    const ssize_t got = ::read(0, buffer, sizeof buffer);
    if (got <= 0) ::_exit(0);  // the worker needs us no more
    parser.Append({buffer, static_cast<std::size_t>(got)});
  }
}

int Serve() {
  Send("{\"ready\":true}");
  const StageOrder order = ReadOrder();
  const std::string& name = order.task.stage.name;
  StageResult ok;
  ok.ok = true;
  ok.rows = {10, 7, 1, 2, 0};
  if (name == "ok") Finish(ok);
  if (name == "inspect") {  // says what it was given
    ok.target = order.scratch;
    ok.plan = order.connection ? order.connection->dsn : "no connection";
    ok.manifest = order.lake;
    ok.bytes_read = static_cast<std::int64_t>(order.token.value());
    std::ofstream(order.scratch + "/spill") << "temporary";
    if (!std::filesystem::exists(order.scratch + "/spill")) ok.ok = false;
    Finish(ok);
  }
  if (name == "fail" || name == "fail_later") {
    StageResult failed;
    failed.error_class = "check_failed";
    failed.error = "3 rows are null";
    failed.retryable = name == "fail_later";
    Finish(failed);
  }
  if (name == "segv") {
    std::fprintf(stderr, "about to crash\n");
    ::signal(SIGSEGV, SIG_DFL);
    ::raise(SIGSEGV);
  }
  if (name == "silent") return 3;
  if (name == "garbage") {
    Write(std::string(8, '\xFF'));
    ::pause();
  }
  if (name == "nonsense") {
    Send("{\"surprise\":1}");
    ::pause();
  }
  if (name == "hang") ::pause();
  if (name == "lingers") {
    Send("{\"result\":" + ToJson(ok) + "}");
    ::pause();
  }
  if (name == "spam") {
    const std::string line(200, 'x');
    for (int i = 0; i < 50'000; ++i) std::fprintf(stderr, "%s %d\n", line.c_str(), i);
    std::fprintf(stderr, "the last line\n");
    Finish(ok);
  }
  if (name == "slow") {
    for (int i = 1; i <= 10; ++i) {
      Send("{\"progress\":{\"rows\":" + std::to_string(i * 100) + ",\"bytes\":" + std::to_string(i * 1000) + "}}");
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
    }
    Finish(ok);
  }
  std::fprintf(stderr, "unknown stage %s\n", name.c_str());
  return 6;
}

int BeNursery(std::string_view manner) {
  if (manner == "dead") {
    std::fprintf(stderr, "stillborn\n");
    return 5;
  }
  auto nursery = Nursery::Open();
  if (!nursery) {
    std::fprintf(stderr, "%s\n", nursery.error().message.c_str());
    return 2;
  }
  if (manner == "mute") ::pause();
  std::thread second;
  if (manner == "threads") second = std::thread([] { ::pause(); });
  if (!nursery->SayWarm()) return 3;
  if (manner == "mute_when_warm") ::pause();
  const auto answered = nursery->AnswerAll([manner] {
    if (manner == "sick_children") ::_exit(4);
    std::_Exit(Serve());
  });
  std::fprintf(stderr, "%s\n", answered.error().message.c_str());
  std::_Exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || std::string_view(argv[1]) != "--nursery") return Serve();
  const char* manner = std::getenv("FAKE_NURSERY");
  return BeNursery(manner == nullptr ? "" : manner);
}
