#include "client/bench/handler_fleet.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <thread>
#include <utility>

#include "common/base/random.h"

namespace millrace::bench {
namespace {

constexpr Millis kReadyTimeout{20'000};
constexpr Millis kLook{2};

}  // namespace

std::string UniqueName() {
  SystemRandom random;
  return fmt::format("bench_{:08x}", static_cast<std::uint32_t>(random.Next()));
}

Result<HandlerFleet> HandlerFleet::Make(FleetOptions options, std::uint64_t jobs, std::uint32_t workers) {
  std::string path = options.folder + "/" + options.name + ".board";
  MILLRACE_TRY_ASSIGN(const Scoreboard board, Scoreboard::Open(path, jobs, workers));
  return HandlerFleet(std::move(options), board, std::move(path));
}

HandlerFleet::~HandlerFleet() {
  Stop();
  if (!path_.empty()) ::unlink(path_.c_str());
}

void HandlerFleet::Stop() { processes_.clear(); }

Result<void> HandlerFleet::Start(const Installation& at) {
  const std::string log = options_.folder + "/handlers.log";
  for (std::uint32_t i = 0; i < board_.handlers(); ++i) {
    std::vector<std::string> argv{OwnProgram(), "bench", "handler"};
    const auto add = [&](const char* option, std::string value) {
      argv.emplace_back(option);
      argv.push_back(std::move(value));
    };
    add("--endpoint", at.workers);
    add("--name", fmt::format("{}-{}", options_.name, i + 1));
    add("--queue", options_.name);
    add("--kind", options_.kind);
    add("--concurrency", std::to_string(options_.concurrency));
    add("--prefetch", std::to_string(options_.prefetch));
    add("--sleep-ms", std::to_string(options_.sleep.count()));
    add("--board", path_);
    add("--jobs", std::to_string(board_.jobs()));
    add("--handlers", std::to_string(board_.handlers()));
    add("--index", std::to_string(i));
    MILLRACE_TRY_ASSIGN(auto process,
                        Process::Start({.argv = std::move(argv), .log = log, .out = "", .stop_signal = SIGTERM, .user = ""}));
    processes_.push_back(std::move(process));
  }
  const SystemClock clock;
  const MonoTime give_up = clock.Now() + kReadyTimeout;
  for (std::uint32_t i = 0; i < board_.handlers(); ++i) {
    while (Peek(board_.handler(i).ready) == 0) {
      if (Interrupted()) return Fail(ErrorCode::kCancelled, "interrupted");
      if (!processes_[i].Running() || clock.Now() >= give_up)
        return Fail(ErrorCode::kUnavailable, "a handler process does not reach the broker at {}; its log is {}", at.workers,
                    log);
      std::this_thread::sleep_for(kLook);
    }
  }
  return {};
}

}  // namespace millrace::bench
