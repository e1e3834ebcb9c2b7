#include "common/model/job_options.h"

#include <algorithm>
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

std::string ToJson(const JobOptions& options) {
  static const JobOptions kDefaults;
  return options == kDefaults ? std::string{} : json_codec::Write(options);
}

Result<JobOptions> JobOptionsFromJson(std::string_view text) {
  if (text.empty()) return JobOptions{};
  auto options = json_codec::Read<JobOptions>(text, "options");
  if (!options) return Fail(ErrorCode::kInvalidArgument, "{}", options.error().message);
  const auto name = [](std::string_view field, std::string_view value) -> Result<void> {
    if (value.size() > kNameBytesMax)
      return Fail(ErrorCode::kInvalidArgument, "options: {}: {} bytes, limit {}", field, value.size(), kNameBytesMax);
    if (std::ranges::any_of(value, [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
      return Fail(ErrorCode::kInvalidArgument, "options: {}: contains a control character", field);
    return {};
  };
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
