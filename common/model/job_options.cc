#include "common/model/job_options.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/model/json_codec.h"

namespace millrace {

template <class Ar, json_codec::MaybeConst<JobOptions> T>
void Describe(Ar& ar, T& v) {
  const JobOptions d;
  ar("backoff", v.backoff, d.backoff);
  ar("no_retry", v.no_retry, d.no_retry);
  ar("expires_at_us", v.expires_at);
  ar("deadline_us", v.deadline);
  ar("limit_key", v.limit_key, d.limit_key);
  ar("unique_key", v.unique_key, d.unique_key);
  ar("unique_until", v.unique_until, d.unique_until);
  ar("unique_window_ms", v.unique_window, d.unique_window);
  ar("run_when", v.run_when, d.run_when);
  ar("durability", v.durability, d.durability);
  ar("has_sink", v.has_sink, d.has_sink);
  ar("retry_of", v.retry_of);
  ar("route_rows", v.route_rows, d.route_rows);
}

namespace {

// What a general JSON codec would read and write in ten times the time: options that say nothing but a limit key and the
// durability, as most of those that say anything do. Whatever is unusual in them is left to the codec, errors too.
constexpr std::string_view kLimitKey = R"("limit_key":")", kDurability = R"("durability":")";

bool IsPlain(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; });
}

bool ReadPlain(std::string_view text, JobOptions& out) {
  // The text of the member that stands at the front, which it leaves.
  const auto take = [&text](std::string_view member) -> std::optional<std::string_view> {
    if (!text.starts_with(member)) return std::nullopt;
    const auto end = text.find('"', member.size());
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view value = text.substr(member.size(), end - member.size());
    text.remove_prefix(end + 1);
    return value;
  };
  if (!text.starts_with('{')) return false;
  text.remove_prefix(1);
  if (const auto key = take(kLimitKey)) {
    if (key->size() > kNameBytesMax || !IsPlain(*key)) return false;
    out.limit_key = *key;
    if (text == "}") return true;
    if (!text.starts_with(',')) return false;
    text.remove_prefix(1);
    if (!text.starts_with(kDurability)) return false;
  }
  if (const auto name = take(kDurability)) {
    const auto durability = ParseDurability(*name);
    if (!durability) return false;
    out.durability = *durability;
  }
  return text == "}";
}

std::optional<std::string> WritePlain(const JobOptions& options) {
  if (!IsPlain(options.limit_key)) return std::nullopt;
  JobOptions same;
  same.limit_key = options.limit_key;
  same.durability = options.durability;
  if (same != options) return std::nullopt;
  std::string text = "{";
  if (!options.limit_key.empty()) text.append(kLimitKey).append(options.limit_key) += '"';
  if (options.durability != Durability::kUnsaid) {
    if (text.size() > 1) text += ',';
    text.append(kDurability).append(Name(options.durability)) += '"';
  }
  return text += '}';
}

}  // namespace

std::string ToJson(const JobOptions& options) {
  static const JobOptions kDefaults;
  if (options == kDefaults) return {};
  auto plain = WritePlain(options);
  return plain ? std::move(*plain) : json_codec::Write(options);
}

Result<JobOptions> JobOptionsFromJson(std::string_view text) {
  if (text.empty()) return JobOptions{};
  if (JobOptions plain; ReadPlain(text, plain)) return plain;
  auto options = json_codec::Read<JobOptions>(text, "options");
  if (!options) return Fail(ErrorCode::kInvalidArgument, "{}", options.error().message);
  const auto name = [](std::string_view field, std::string_view value) -> Result<void> {
    if (value.size() > kNameBytesMax)
      return Fail(ErrorCode::kInvalidArgument, "options: {}: {} bytes, limit {}", field, value.size(), kNameBytesMax);
    if (std::ranges::any_of(value, [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
      return Fail(ErrorCode::kInvalidArgument, "options: {}: contains a control character", field);
    return {};
  };
  // A default is never written: this is somebody's word, and it would mean nothing.
  if (options->unique_key.empty() && json_codec::Json::parse(text, nullptr, false).contains("unique_key"))
    return Fail(ErrorCode::kInvalidArgument, "options: unique_key: is empty; give 1 to {} bytes, or leave it out",
                kNameBytesMax);
  MILLRACE_TRY(name("limit_key", options->limit_key));
  MILLRACE_TRY(name("unique_key", options->unique_key));
  if (options->no_retry.size() > kNoRetryClassesMax)
    return Fail(ErrorCode::kInvalidArgument, "options: no_retry: {} classes, limit {}", options->no_retry.size(),
                kNoRetryClassesMax);
  for (const std::string& error_class : options->no_retry) MILLRACE_TRY(name("no_retry", error_class));
  if (options->route_rows < 0 || options->route_rows > kRouteRowsMax)
    return Fail(ErrorCode::kInvalidArgument, "options: route_rows: {} is not in [0, {}]", options->route_rows, kRouteRowsMax);
  if (options->unique_window.count() < 0)
    return Fail(ErrorCode::kInvalidArgument, "options: unique_window_ms: {} is negative", options->unique_window.count());
  return options;
}

}  // namespace millrace
