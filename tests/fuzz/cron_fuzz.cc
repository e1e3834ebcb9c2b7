// Any bytes as "expression\nzone\nrule": what is accepted fires in order and the same however it is asked, what is refused says
// why in one line.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "common/model/cron.h"
#include "tests/fuzz/accepted.h"

namespace {

std::string_view NextLine(std::string_view& text) {
  const std::size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

void CheckRefusal(const millrace::Error& error) {
  if (error.code != millrace::ErrorCode::kInvalidArgument || error.message.empty() ||
      error.message.find('\n') != std::string::npos)
    std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view cron = NextLine(rest), zone = NextLine(rest), rule_name = NextLine(rest);
  const auto rule = millrace::ParseDstRule(rule_name);
  if (!rule) CheckRefusal(rule.error());
  if (rule && millrace::Name(*rule) != rule_name) std::abort();
  const auto expression = millrace::CronExpression::Parse(cron);
  if (!expression) CheckRefusal(expression.error());
  const auto schedule = millrace::CronSchedule::Make(cron, zone, rule ? *rule : millrace::DstRule::kOnce);
  if (!schedule) return CheckRefusal(schedule.error()), 0;
  if (!expression) std::abort();
  ++millrace::fuzz::accepted;
  for (const std::int64_t start : std::array<std::int64_t, 4>{0, 1'700'000'000, 1'772'900'000, 2'145'916'800}) {
    millrace::WallTime t = millrace::FromUnixMicros(start * 1'000'000);
    const millrace::WallTime from = t;
    std::vector<millrace::WallTime> fires;
    for (int i = 0; i < 5; ++i) {
      const auto next = schedule->Next(t);
      if (!next) break;
      if (*next <= t || millrace::ToUnixMicros(*next) % 1'000'000 != 0) std::abort();
      if (schedule->Next(*next - millrace::Micros{1}) != next) std::abort();
      if (schedule->InZone(*next).empty()) std::abort();
      fires.push_back(t = *next);
    }
    if (schedule->Between(from, t, fires.size() + 1) != fires) std::abort();
  }
  return 0;
}
