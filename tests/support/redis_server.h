// A redis-server of a test's own, with an append-only file in a folder of its own, on a free port of 127.0.0.1; ended by its
// pid.
#pragma once

#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>

#include "common/base/clock.h"
#include "common/drivers/redis.h"
#include "common/wire/stream_socket.h"

extern char** environ;

namespace millrace::testing {

class RedisServer {
 public:
  static bool Installed() { return std::system("command -v redis-server >/dev/null 2>&1") == 0; }

  explicit RedisServer(std::string appendfsync) : appendfsync_(std::move(appendfsync)) {
    std::string folder = (std::filesystem::temp_directory_path() / "millrace_redis_XXXXXX").string();
    if (::mkdtemp(folder.data()) != nullptr) folder_ = folder;
  }
  ~RedisServer() {
    Kill();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  // Returns when it answers (it has loaded its file then); false after 20 s.
  bool Start() {
    const std::string port = std::to_string(port_.number);
    const char* const arguments[] = {
        "redis-server",       "--port",    port.c_str(), "--bind",       "127.0.0.1", "--dir",
        folder_.c_str(),      "--save",    "",           "--appendonly", "yes",       "--appendfsync",
        appendfsync_.c_str(), "--logfile", "log",        nullptr};
    if (::posix_spawnp(&pid_, "redis-server", nullptr, nullptr, const_cast<char* const*>(arguments), environ) != 0)
      return false;
    const SystemClock clock;
    for (const MonoTime give_up = clock.Now() + Micros{20'000'000}; clock.Now() < give_up; ::poll(nullptr, 0, 20)) {
      auto direct = redis::Connection::Connect(*redis::ParseEndpoint(endpoint()), {}, clock.Now() + Micros{1'000'000});
      if (!direct) continue;
      const auto pong = direct->Call({"PING"}, clock.Now() + Micros{1'000'000});
      if (pong && pong->text == "PONG") return true;
    }
    return false;
  }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void Stop() const { ::kill(pid_, SIGSTOP); }
  void Continue() const { ::kill(pid_, SIGCONT); }
  // The text of its answer, or of the error.
  std::string Said(std::initializer_list<std::string_view> command) const {
    const SystemClock clock;
    auto direct = redis::Connection::Connect(*redis::ParseEndpoint(endpoint()), {}, clock.Now() + Micros{5'000'000});
    if (!direct) return direct.error().message;
    const auto reply = direct->Call(command, clock.Now() + Micros{5'000'000});
    return reply ? reply->text : reply.error().message;
  }
  std::string endpoint() const { return "127.0.0.1:" + std::to_string(port_.number); }

 private:
  std::string appendfsync_, folder_;
  const wire::HeldPort port_ = wire::HoldPort().value();  // also while it is down
  pid_t pid_ = 0;
};

}  // namespace millrace::testing
