#include "common/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>

namespace millrace {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarn: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
    case LogLevel::kOff: return spdlog::level::off;
  }
  return spdlog::level::info;
}

struct LogState {
  std::shared_ptr<spdlog::logger> logger = spdlog::stderr_color_mt("millrace");
  bool json = isatty(STDERR_FILENO) == 0;
  LogState() { Apply("millrace"); }
  void Apply(const std::string& process) {
    // The message of a JSON line is escaped by us (LogLine): spdlog's pattern does not escape.
    logger->set_pattern(json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","process":")" + process + R"(","message":%v})"
                             : "%H:%M:%S.%e %^%-5l%$ " + process + ": %v",
                        json ? spdlog::pattern_time_type::utc : spdlog::pattern_time_type::local);
  }
};

LogState& State() {
  static LogState state;
  return state;
}

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace

void ConfigureLog(LogLevel level, LogFormat format, std::string process) {
  LogState& state = State();
  state.json = format == LogFormat::kJson || (format == LogFormat::kAuto && isatty(STDERR_FILENO) == 0);
  state.Apply(process);
  state.logger->set_level(ToSpdlog(level));
}

bool LogEnabled(LogLevel level) { return State().logger->should_log(ToSpdlog(level)); }

void LogLine(LogLevel level, std::string_view message) {
  LogState& state = State();
  if (state.json) {
    state.logger->log(ToSpdlog(level), JsonString(message));
    return;
  }
  std::string line(message);
  for (char& c : line)
    if (c == '\n' || c == '\r') c = ' ';
  state.logger->log(ToSpdlog(level), line);
}

}  // namespace millrace
