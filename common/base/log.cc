#include "common/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>

#include "common/base/history.h"

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
  std::string process = "millrace";
  LogState() { Apply(); }
  void Apply() {
    // Process and message are put together and escaped by LogLine: spdlog's pattern does neither, and reads '%' itself.
    logger->set_pattern(json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l",%v})" : "%Y-%m-%dT%H:%M:%S.%eZ %^%-5l%$ %v",
                        spdlog::pattern_time_type::utc);
  }
};

LogState& State() {
  static LogState state;
  return state;
}

// A message cannot forge a second line or move the terminal's cursor.
std::string OneLine(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if ((byte < 0x20 && c != '\t') || byte == 0x7f)
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(byte));
    else
      out += c;
  }
  return out;
}

}  // namespace

void ConfigureLog(LogLevel level, LogFormat format, std::string process) {
  LogState& state = State();
  state.json = format == LogFormat::kJson || (format == LogFormat::kAuto && isatty(STDERR_FILENO) == 0);
  state.process = std::move(process);
  state.Apply();
  state.logger->set_level(ToSpdlog(level));
}

bool LogEnabled(LogLevel level) { return State().logger->should_log(ToSpdlog(level)); }

void LogLine(LogLevel level, std::string_view message) {
  LogState& state = State();
  if (state.json) {
    state.logger->log(ToSpdlog(level), std::string_view("\"process\":" + history::Quoted(state.process) +
                                                        ",\"message\":" + history::Quoted(message)));
    return;
  }
  state.logger->log(ToSpdlog(level), std::string_view(state.process + ": " + OneLine(message)));
}

}  // namespace millrace
