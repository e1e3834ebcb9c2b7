#include <charconv>
#include <limits>
#include <span>

#include "common/config/config.h"

namespace millrace {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t factor;
};
constexpr Unit kDurations[] = {{"ms", 1}, {"s", 1000}, {"m", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}};
constexpr Unit kSizes[] = {{"B", 1}, {"KiB", 1ull << 10}, {"MiB", 1ull << 20}, {"GiB", 1ull << 30}, {"TiB", 1ull << 40}};

// Nothing when it is no number with one of the units; more than `max` when it is too great.
std::optional<std::uint64_t> ParseWithUnit(std::string_view text, std::span<const Unit> units, std::uint64_t max) {
  std::uint64_t number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed == std::errc::invalid_argument) return std::nullopt;
  const std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  for (const Unit& u : units)
    if (u.name == unit) return failed == std::errc{} && number <= max / u.factor ? number * u.factor : max + 1;
  return std::nullopt;
}

}  // namespace

Result<Millis> ParseDuration(std::string_view text) {
  constexpr std::uint64_t kMax = 3'650ull * 86'400'000;
  const auto ms = ParseWithUnit(text, kDurations, kMax);
  if (!ms) return Fail(ErrorCode::kInvalidArgument, "'{}' is not a duration like 500ms, 30s, 5m, 2h or 7d", text.substr(0, 64));
  if (*ms > kMax) return Fail(ErrorCode::kInvalidArgument, "'{}' is longer than 3650d", text.substr(0, 64));
  return Millis{static_cast<std::int64_t>(*ms)};
}

Result<std::uint64_t> ParseSize(std::string_view text) {
  constexpr std::uint64_t kMax{std::numeric_limits<std::int64_t>::max()};
  const auto bytes = ParseWithUnit(text, kSizes, kMax);
  if (!bytes) return Fail(ErrorCode::kInvalidArgument, "'{}' is not a size like 512KiB, 64MiB or 2GiB", text.substr(0, 64));
  if (*bytes > kMax) return Fail(ErrorCode::kInvalidArgument, "'{}' is more than {}B", text.substr(0, 64), kMax);
  return *bytes;
}

}  // namespace millrace
