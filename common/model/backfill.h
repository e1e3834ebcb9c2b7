// What a backfill was asked to do. Stored as JSON in its ledger row, which never changes: an edit of the pipeline or of its
// schedule changes nothing for a backfill that is under way.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace {

inline constexpr std::uint32_t kBackfillParallelMax = 1000;
inline constexpr std::uint32_t kBackfillGenerationMax =
    1'000'000'000;  // that one may ask for: the next ones have room above it
inline constexpr std::size_t kBackfillSlotsMax = 1'000'000;

// Which slots of the range get a run.
enum class Reprocess : std::uint8_t {
  kNone,    // those without any run: never decided, missed or skipped
  kFailed,  // those too whose latest run ended without success
  kAll,     // every one
};
std::string_view Name(Reprocess reprocess);  // "none", "failed", "all"
Result<Reprocess> ParseReprocess(std::string_view name);

struct BackfillOptions {
  bool newest_first = false;
  std::uint32_t max_parallel = 1;  // runs at once, 1 .. kBackfillParallelMax
  Reprocess reprocess = Reprocess::kNone;
  std::map<std::string, std::string> params{};  // overrides, as text
  ScheduleSpec schedule{};                      // as it was in force: cron, zone, rule, range, overlap
  friend bool operator==(const BackfillOptions&, const BackfillOptions&) = default;
};

// Who stops a backfill that cannot run; anybody else's request is a cancel.
inline constexpr std::string_view kBackfillBrokenActor = "scheduler";

std::string ToJson(const BackfillOptions& options);                      // canonical
Result<BackfillOptions> BackfillOptionsFromJson(std::string_view text);  // kCorrupt

}  // namespace millrace
