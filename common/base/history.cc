#include "common/base/history.h"

#include <fmt/format.h>

#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#endif

namespace millrace::history {

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out += '"';
}

#if defined(MILLRACE_FAILPOINTS) && MILLRACE_FAILPOINTS
namespace {

constexpr int kNotOpened = -2, kOff = -1;

struct State {
  std::mutex mutex;
  std::atomic<int> fd{kNotOpened};
  std::atomic<pid_t> of{0};           // the process that opened it
  std::optional<std::string> folder;  // instead of the environment's
};

State& Global() {
  static State* state = new State;  // never destroyed: threads may write while the process ends
  return *state;
}

template <class Clock>
std::int64_t MicrosOf() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count();
}

int OpenIn(const std::string& folder) {
  if (folder.empty()) return kOff;
  const std::string path = fmt::format("{}/{}-{}.jsonl", folder, ::getpid(), MicrosOf<std::chrono::steady_clock>());
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

void Open(State& state, const std::string& folder) {
  const int before = state.fd.exchange(OpenIn(folder));
  state.of = ::getpid();
  if (before >= 0) ::close(before);
}

std::string_view Name(Type type) {
  switch (type) {
    case Type::kInvoke: return "invoke";
    case Type::kOk: return "ok";
    case Type::kFail: return "fail";
    case Type::kUnknown: return "unknown";
  }
  return "?";
}

}  // namespace

bool On() {
  State& state = Global();
  const int fd = state.fd.load(std::memory_order_acquire);
  if (fd == kOff) return false;
  // The child of a fork has its parent's file, in which a line that its death tears would not be the last.
  if (fd != kNotOpened && state.of.load(std::memory_order_relaxed) == ::getpid()) return true;
  const std::scoped_lock lock(state.mutex);
  if (state.fd == kNotOpened || (state.fd != kOff && state.of != ::getpid())) {
    const char* environment = std::getenv("MILLRACE_HISTORY");
    Open(state, state.folder.value_or(environment == nullptr ? "" : environment));
  }
  return state.fd >= 0;
}

void SetFolder(const std::string& folder) {
  State& state = Global();
  const std::scoped_lock lock(state.mutex);
  state.folder = folder;
  Open(state, folder);
}

void Write(std::string_view who, std::string_view op, Type type, std::string_view fields) {
  if (!On()) return;
  const std::string line = fmt::format(R"({{"m":{},"t":{},"pid":{},"who":{},"op":"{}","type":"{}"{}{}}})"
                                       "\n",
                                       MicrosOf<std::chrono::steady_clock>(), MicrosOf<std::chrono::system_clock>(), ::getpid(),
                                       Quoted(who), op, Name(type), fields.empty() ? "" : ",", fields);
  const State& state = Global();
  [[maybe_unused]] const auto written = ::write(state.fd, line.data(), line.size());
}
#endif

}  // namespace millrace::history
