// The one error type, and Result<T>. No exceptions cross a component: a driver turns its library's failures into Error.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace millrace {

// A code exists only where some caller acts differently on it.
enum class ErrorCode : std::uint8_t {
  kInvalidArgument,  // the input is wrong; the same input will always be refused
  kNotFound,
  kConflict,      // a precondition does not hold now (locked home, unique key, serialization failure)
  kStale,         // fenced: an older token or epoch than the one on record; stop, do not retry
  kWiped,         // the queue lost its state (no epoch where one was): take the shard anew
  kLimit,         // a named limit is reached; the caller may retry later
  kRejected,      // the other side understood and refused (SQL error, permission, check failed)
  kUnavailable,   // nothing was applied; retry with backoff
  kTimedOut,      // a deadline passed before anything was sent
  kMaybeApplied,  // sent, but the answer is lost: look the outcome up by key, never repeat blindly
  kCorrupt,       // stored or received bytes are not what they must be
  kCancelled,
  kUnsupported,  // a newer version or a missing capability
};

std::string_view Name(ErrorCode code);  // "invalid_argument", "maybe_applied", ... (stable, shown to users)

struct Error {
  ErrorCode code;
  std::string message;  // names the field, the value and the fix; one line, no trailing full stop
};

template <class T>
class [[nodiscard]] Result : public std::expected<T, Error> {
 public:
  using std::expected<T, Error>::expected;
};

template <class... Args>
[[nodiscard]] std::unexpected<Error> Fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

// Adds context on the way up: `return Prefixed(std::move(r.error()), "queue '{}'", name);`
template <class... Args>
[[nodiscard]] std::unexpected<Error> Prefixed(Error error, fmt::format_string<Args...> format, Args&&... args) {
  error.message = fmt::format(format, std::forward<Args>(args)...) + ": " + error.message;
  return std::unexpected(std::move(error));
}

}  // namespace millrace

// Returns the error of a Result-valued expression to the caller. Statement form only.
#define MILLRACE_TRY(expression)                                       \
  do {                                                                 \
    if (auto millrace_try_result = (expression); !millrace_try_result) \
      return std::unexpected(std::move(millrace_try_result.error()));  \
  } while (false)

// Declares `variable` with the value of a Result-valued expression, or returns its error.
#define MILLRACE_TRY_ASSIGN(variable, expression) \
  MILLRACE_TRY_ASSIGN_IMPL(variable, expression, MILLRACE_CONCAT(millrace_try_, __LINE__))
#define MILLRACE_CONCAT_IMPL(a, b) a##b
#define MILLRACE_CONCAT(a, b) MILLRACE_CONCAT_IMPL(a, b)
#define MILLRACE_TRY_ASSIGN_IMPL(variable, expression, temporary)       \
  auto temporary = (expression);                                        \
  if (!temporary) return std::unexpected(std::move(temporary.error())); \
  variable = std::move(*temporary)
