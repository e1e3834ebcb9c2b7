#include "common/model/param.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <optional>

#include "common/base/clock.h"

namespace millrace {
namespace {

constexpr std::array<std::string_view, 6> kTypes{"text", "bigint", "double", "boolean", "date", "timestamp"};

bool AllDigits(std::string_view s) {
  return !s.empty() && std::ranges::all_of(s, [](char c) { return c >= '0' && c <= '9'; });
}

// Digits without a leading zero, as people write numbers and nobody writes identifiers.
bool PlainDigits(std::string_view s) { return AllDigits(s) && (s.size() == 1 || s[0] != '0'); }

std::string_view WithoutSign(std::string_view s) {
  if (s.starts_with('-') || s.starts_with('+')) s.remove_prefix(1);
  return s;
}

bool LooksDouble(std::string_view s) {
  s = WithoutSign(s);
  const auto e = s.find_first_of("eE");
  const std::string_view mantissa = s.substr(0, e);
  if (e != std::string_view::npos && !AllDigits(WithoutSign(s.substr(e + 1)))) return false;
  const auto dot = mantissa.find('.');
  if (dot == std::string_view::npos) return e != std::string_view::npos && PlainDigits(mantissa);
  const auto whole = mantissa.substr(0, dot), part = mantissa.substr(dot + 1);
  return (whole.empty() ? AllDigits(part) : PlainDigits(whole) && (part.empty() || AllDigits(part)));
}

template <class T>
std::optional<T> Number(std::string_view s) {
  if (s.starts_with('+')) s.remove_prefix(1);
  T value{};
  const auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (ec != std::errc{} || end != s.data() + s.size()) return std::nullopt;
  return value;
}

bool IsDate(std::string_view s) {
  if (s.size() != 10 || s[4] != '-' || s[7] != '-' || !AllDigits(s.substr(0, 4)) || !AllDigits(s.substr(5, 2)) ||
      !AllDigits(s.substr(8, 2)))
    return false;
  return std::chrono::year_month_day{std::chrono::year{*Number<int>(s.substr(0, 4))},
                                     std::chrono::month{*Number<unsigned>(s.substr(5, 2))},
                                     std::chrono::day{*Number<unsigned>(s.substr(8, 2))}}
      .ok();
}

std::optional<std::string> Timestamp(std::string_view s) {
  if (IsDate(s)) return std::string(s) + " 00:00:00";
  if (s.size() < 19 || !IsDate(s.substr(0, 10)) || (s[10] != ' ' && s[10] != 'T')) return std::nullopt;
  std::string rfc(s);
  rfc[10] = 'T';
  const bool zoned = s.ends_with('Z') || s.find_first_of("+-", 19) != std::string_view::npos;
  if (!zoned) rfc += 'Z';
  const auto time = ParseRfc3339(rfc);
  if (!time) return std::nullopt;
  std::string out = ToRfc3339(*time);
  if (out.size() < 20) return std::nullopt;
  out[10] = ' ';
  out.pop_back();
  return out;
}

}  // namespace

std::span<const std::string_view> ParamTypes() { return kTypes; }

std::string_view InferParamType(std::string_view text) {
  if (text == "true" || text == "false") return "boolean";
  if (PlainDigits(WithoutSign(text)) && Number<std::int64_t>(text)) return "bigint";
  if (LooksDouble(text) && Number<double>(text)) return "double";
  if (IsDate(text)) return "date";
  if (Timestamp(text)) return "timestamp";
  return "text";
}

Result<std::string> CanonicalParam(std::string_view type, std::string_view text) {
  if (type == "text") return std::string(text);
  if (type == "bigint") {
    if (const auto v = Number<std::int64_t>(text)) return fmt::format("{}", *v);
  } else if (type == "double") {
    if (const auto v = Number<double>(text); v && std::isfinite(*v)) return fmt::format("{}", *v);
  } else if (type == "boolean") {
    if (text == "true" || text == "false") return std::string(text);
  } else if (type == "date") {
    if (IsDate(text)) return std::string(text);
  } else if (type == "timestamp") {
    if (auto v = Timestamp(text)) return std::move(*v);
  } else {
    return Fail(ErrorCode::kInvalidArgument, "unknown type '{}'", type);
  }
  return Fail(ErrorCode::kInvalidArgument, "'{}' is not a {}", text, type);
}

}  // namespace millrace
