#include "common/base/failpoint.h"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace millrace {
namespace {

enum class Action : std::uint8_t { kExit, kSleep, kError };

struct Point {
  Action action = Action::kError;
  std::chrono::milliseconds sleep{0};
  double probability = 1.0;
  std::optional<std::uint64_t> strikes_left;
};

using Points = std::map<std::string, Point, std::less<>>;

struct State {
  std::mutex mutex;
  bool loaded = false;
  Points points;
  std::map<std::string, std::function<void()>, std::less<>> hooks;
  std::mt19937_64 engine{1};
};

State& Global() {
  static State* state = new State;  // never destroyed: failpoints may be hit while the process ends
  return *state;
}

std::optional<double> ParseNumber(std::string_view text) {
  double value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::optional<Point> ParseAction(std::string_view text) {
  std::vector<double> arguments;
  const auto open = text.find('(');
  const std::string_view name = text.substr(0, open);
  if (open != std::string_view::npos) {
    if (!text.ends_with(')')) return std::nullopt;
    std::string_view rest = text.substr(open + 1, text.size() - open - 2);
    while (true) {
      const auto semicolon = rest.find(';');
      const auto number = ParseNumber(rest.substr(0, semicolon));
      if (!number) return std::nullopt;
      arguments.push_back(*number);
      if (semicolon == std::string_view::npos) break;
      rest.remove_prefix(semicolon + 1);
    }
  }
  Point point;
  std::size_t next = 0;
  if (name == "exit") {
    point.action = Action::kExit;
  } else if (name == "error") {
    point.action = Action::kError;
  } else if (name == "sleep" && !arguments.empty()) {
    point.action = Action::kSleep;
    point.sleep = std::chrono::milliseconds{static_cast<std::int64_t>(arguments[next++])};
  } else {
    return std::nullopt;
  }
  if (next < arguments.size()) point.probability = arguments[next++];
  if (next < arguments.size()) point.strikes_left = static_cast<std::uint64_t>(arguments[next++]);
  if (next != arguments.size() || point.probability > 1) return std::nullopt;
  return point;
}

// A comma inside parentheses separates arguments, outside entries: the inner ones become semicolons first.
Result<Points> ParseSpec(std::string_view spec) {
  std::string text(spec);
  int depth = 0;
  for (char& c : text) {
    if (c == '(') ++depth;
    if (c == ')') --depth;
    if (c == ',' && depth > 0) c = ';';
  }
  Points points;
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    const std::string_view entry = rest.substr(0, comma);
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
    if (entry.empty()) continue;
    const auto equals = entry.find('=');
    const auto point = equals == std::string_view::npos ? std::nullopt : ParseAction(entry.substr(equals + 1));
    if (!point)
      return Fail(ErrorCode::kInvalidArgument,
                  "failpoint '{}' is not name=exit|error|sleep(ms), with (probability) or (probability,times)", entry);
    points[std::string(entry.substr(0, equals))] = *point;
  }
  return points;
}

void LoadFromEnvironment(State& state) {
  state.loaded = true;
  const char* seed = std::getenv("MILLRACE_FAILPOINT_SEED");
  state.engine.seed(seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10));
  const char* spec = std::getenv("MILLRACE_FAILPOINTS");
  if (spec == nullptr) return;
  auto points = ParseSpec(spec);
  if (!points) {  // a misspelt failpoint would make a chaos test pass for nothing
    std::fprintf(stderr, "MILLRACE_FAILPOINTS: %s\n", points.error().message.c_str());
    std::abort();
  }
  state.points = std::move(*points);
}

}  // namespace

Result<void> ConfigureFailpoints(std::string_view spec, std::uint64_t seed) {
  MILLRACE_TRY_ASSIGN(Points points, ParseSpec(spec));
  State& state = Global();
  const std::scoped_lock lock(state.mutex);
  state.loaded = true;
  state.points = std::move(points);
  state.engine.seed(seed);
  return {};
}

void SetFailpointHook(std::string_view name, std::function<void()> hook) {
  State& state = Global();
  const std::scoped_lock lock(state.mutex);
  if (hook)
    state.hooks[std::string(name)] = std::move(hook);
  else if (const auto it = state.hooks.find(name); it != state.hooks.end())
    state.hooks.erase(it);
}

Result<void> HitFailpoint(std::string_view name) {
  State& state = Global();
  std::function<void()> hook;
  std::optional<Point> point;
  {
    const std::scoped_lock lock(state.mutex);
    if (!state.loaded) LoadFromEnvironment(state);
    if (const auto it = state.hooks.find(name); it != state.hooks.end()) hook = it->second;
    if (const auto it = state.points.find(name); it != state.points.end()) {
      std::uniform_real_distribution<double> draw(0.0, 1.0);
      const bool struck = it->second.probability >= 1.0 || draw(state.engine) < it->second.probability;
      auto& left = it->second.strikes_left;
      if (struck && left != 0) point = it->second;
      if (point && left) --*left;
    }
  }
  if (hook) hook();
  if (!point) return {};
  switch (point->action) {
    case Action::kExit: ::_exit(137);
    case Action::kSleep: std::this_thread::sleep_for(point->sleep); return {};
    case Action::kError: return Fail(ErrorCode::kUnavailable, "failpoint '{}'", name);
  }
  return {};
}

}  // namespace millrace
