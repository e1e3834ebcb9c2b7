#include "common/model/schedule_rules.h"

#include <algorithm>
#include <charconv>
#include <limits>

namespace millrace {
namespace {

// FNV-1a with a final mix: stored nowhere, but every scheduler must come to the same answer, so it never changes.
class Hash {
 public:
  void Add(std::string_view text) {
    for (const char c : text) Byte(static_cast<std::uint8_t>(c));
    Byte(0);
  }
  void Add(std::int64_t number) {
    for (int i = 0; i < 8; ++i) Byte(static_cast<std::uint8_t>(static_cast<std::uint64_t>(number) >> (8 * i)));
  }
  std::uint64_t Mixed() const {
    std::uint64_t h = hash_;
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return h ^ (h >> 31);
  }

 private:
  void Byte(std::uint8_t b) { hash_ = (hash_ ^ b) * 0x100000001B3u; }
  std::uint64_t hash_ = 0xCBF29CE484222325u;
};

}  // namespace

Millis JitterOf(std::string_view pipeline, std::string_view schedule, WallTime slot, Millis jitter) {
  if (jitter <= Millis{0}) return Millis{0};
  Hash hash;
  hash.Add(pipeline);
  hash.Add(schedule);
  hash.Add(ToUnixMicros(slot));
  return Millis{static_cast<std::int64_t>(hash.Mixed() % (static_cast<std::uint64_t>(jitter.count()) + 1))};
}

std::string OverlapOfRuns(const ScheduleSpec& spec) {
  if (spec.overlap != "allow" || spec.max_parallel == 0) return spec.overlap;
  return fmt::format("allow({})", spec.max_parallel);
}

std::uint32_t ParallelRunsOf(std::string_view overlap) {
  if (overlap == "allow") return std::numeric_limits<std::uint32_t>::max();
  if (!overlap.starts_with("allow(") || !overlap.ends_with(")")) return 1;
  const std::string_view number = overlap.substr(6, overlap.size() - 7);
  std::uint32_t limit = 0;
  const auto [end, ec] = std::from_chars(number.data(), number.data() + number.size(), limit);
  return ec == std::errc{} && end == number.data() + number.size() && limit > 0 ? limit : 1;
}

std::string WhyNoSlotRuns(const Pipeline& pipeline) {
  const auto param = std::ranges::find(pipeline.params, true, &ParamSpec::required);
  if (param == pipeline.params.end()) return {};
  return fmt::format("parameter '{}' ({}) is required and a slot has no value for it: no slot can run; give it a default",
                     param->name, param->type);
}

std::string Describe(const ScheduleSpec& spec) {
  const ScheduleSpec d;
  std::string text = fmt::format("{} {}", spec.cron, spec.timezone);
  if (!spec.start.empty()) text += ", from " + spec.start;
  if (!spec.end.empty()) text += fmt::format(", {} {}", spec.end.size() == 10 ? "until the end of" : "before", spec.end);
  if (spec.dst != d.dst) text += ", dst " + spec.dst;
  if (spec.catchup != d.catchup) text += ", catchup " + spec.catchup;
  if (spec.overlap != d.overlap) text += ", overlap " + spec.overlap;
  if (spec.max_parallel != 0) text += fmt::format(" of at most {} runs", spec.max_parallel);
  if (spec.jitter != d.jitter) text += fmt::format(", jitter {} ms", spec.jitter.count());
  if (spec.misfire_grace != d.misfire_grace) text += fmt::format(", misfire_grace {} ms", spec.misfire_grace.count());
  return text;
}

}  // namespace millrace
