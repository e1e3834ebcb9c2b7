// Values of pipelines, schedules, slots and backfills as a Ledger takes and gives them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/model/job.h"
#include "common/model/pipeline.h"

namespace millrace {

// ---- scheduling ------------------------------------------------------------------------------------------------------------
struct PipelineVersion {
  OrgId org = kDefaultOrg;
  std::string name;
  std::int64_t version = 0;  // 1, 2, 3 ... per (org, name)
  std::string source;        // the YAML text as given
  std::string definition;    // canonical JSON of Pipeline
  std::string base_dir;
  WallTime applied_at{};
};
struct ScheduleRow {
  OrgId org = kDefaultOrg;
  std::string pipeline;
  ScheduleSpec spec;
  std::int64_t version = 0;   // the pipeline version that runs
  WallTime watermark{};       // slots at or before it are decided; never goes back
  bool paused = false;        // due slots are decided as skipped
  bool active = true;         // false: the pipeline's newest version has no such schedule
  std::int64_t revision = 0;  // grows with every change of the row but the watermark's going forward
};
struct SlotKey {
  OrgId org = kDefaultOrg;
  std::string pipeline, schedule;
  WallTime slot{};
  std::uint32_t generation = 0;
};
struct SlotRow {
  SlotKey key;
  std::string state;         // fired | skipped | missed
  std::string reason;        // overlap, misfire, catchup none, ...; empty when fired
  std::optional<RunId> run;  // fired
  WallTime decided_at{};     // ledger's clock
};
struct SlotDecision {
  SlotRow slot;
  std::optional<RunSpec> run;  // fired
  std::vector<JobSpec> jobs;
};
// A request to run the slots of a range in the past: one immutable row. Its runs have the row's generation; the scheduler
// feeds them in (scheduler/backfill_feeder.h). See ops/docs/schedules.md.
using BackfillId = UuidId<struct BackfillIdTag>;
struct BackfillRow {
  BackfillId id;
  OrgId org = kDefaultOrg;
  std::string pipeline, schedule;
  WallTime from{}, to{};         // slots in [from, to) ...
  WallTime until{};              // ... and not after this: the schedule's watermark at creation; later ones are the schedule's
  std::uint32_t generation = 0;  // of its slots: unique per (org, pipeline, schedule), 1 or more
  std::int64_t version = 0;      // of the pipeline, for all its runs
  std::string options;           // BackfillOptions as JSON (common/model/backfill.h)
  std::string actor;             // who: "cli root@host"
  WallTime created_at{};
  friend bool operator==(const BackfillRow&, const BackfillRow&) = default;
};
struct BackfillState {
  BackfillRow row;
  WallTime position{};               // oldest first: every slot before it is decided; newest first: every slot at or after it
  bool fed = false;                  // every slot of the range is decided, or it was stopped: no further one is fed
  std::optional<WallTime> ended_at;  // fed, and no run of it is active
  std::uint32_t noted = 0;           // runs of it that were active when last looked at ...
  std::uint32_t active = 0;          // ... and so many of those still are
  std::optional<CancelRow> stopped;  // no further slot is fed: somebody asked, or it cannot run (RequestCancel of its id)
};
struct BackfillFilter {
  std::optional<OrgId> org;  // empty: all orgs
  std::optional<BackfillId> id;
  std::optional<std::string> pipeline;
  bool unended = false;
  std::uint32_t limit = 100;
};
// One row of a slot and, if it has a run, what became of that: of its latest retry, or of a load of it that was requeued alone.
inline constexpr std::size_t kSlotHistoriesMax = 100;  // slots of one question
struct SlotHistory {
  WallTime slot{};
  std::uint32_t generation = 0;
  std::string state;
  std::optional<RunId> run;
  std::optional<RunState> run_ended;  // empty: no run, or it (or such a repetition) is active
};
// A turn of feeding a backfill. Nothing moves when the stored position is not `position_was`.
struct BackfillStep {
  BackfillId id;
  WallTime position_was{}, position{};
  bool fed = false;
  std::vector<RunId> runs;  // of this batch's decisions
};
struct FireBatch {
  std::vector<SlotDecision> decisions;
  struct Watermark {
    OrgId org;
    std::string pipeline, schedule;
    WallTime to;
  };
  std::vector<Watermark> watermarks;  // each becomes greatest(stored, to)
  std::vector<BackfillStep> steps;
  WallTime now{};  // ledger's clock; when a backfill that these steps find at its end ended
};
struct FireResult {
  std::vector<SlotKey> already_decided;  // slots that another scheduler had written: their runs were not created
};

}  // namespace millrace
