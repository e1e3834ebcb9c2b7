#include "common/model/backfill.h"

#include "common/model/json_codec.h"

namespace millrace {
namespace {

struct Stored {  // as JSON has it
  bool newest_first = false;
  std::uint32_t max_parallel = 1;
  std::string reprocess = "none";
  std::map<std::string, std::string> params;
  ScheduleSpec schedule;
};

template <class Ar, json_codec::MaybeConst<Stored> T>
void Describe(Ar& ar, T& v) {
  const Stored d;
  ar("newest_first", v.newest_first, d.newest_first);
  ar("max_parallel", v.max_parallel, d.max_parallel);
  ar("reprocess", v.reprocess, d.reprocess);
  ar("params", v.params, d.params);
  ar("schedule", v.schedule);
}

}  // namespace

std::string_view Name(Reprocess reprocess) {
  switch (reprocess) {
    case Reprocess::kNone: return "none";
    case Reprocess::kFailed: return "failed";
    case Reprocess::kAll: return "all";
  }
  return "unknown";
}

Result<Reprocess> ParseReprocess(std::string_view name) {
  for (const Reprocess r : {Reprocess::kNone, Reprocess::kFailed, Reprocess::kAll})
    if (Name(r) == name) return r;
  return Fail(ErrorCode::kInvalidArgument, "reprocess '{}' is not none, failed or all", name);
}

std::string ToJson(const BackfillOptions& o) {
  return json_codec::Write(Stored{o.newest_first, o.max_parallel, std::string(Name(o.reprocess)), o.params, o.schedule});
}

Result<BackfillOptions> BackfillOptionsFromJson(std::string_view text) {
  MILLRACE_TRY_ASSIGN(Stored s, json_codec::Read<Stored>(text, "backfill"));
  const auto reprocess = ParseReprocess(s.reprocess);
  if (!reprocess) return Fail(ErrorCode::kCorrupt, "backfill: {}", reprocess.error().message);
  return BackfillOptions{s.newest_first, s.max_parallel, *reprocess, std::move(s.params), std::move(s.schedule)};
}

}  // namespace millrace
