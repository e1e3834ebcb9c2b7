// Shows a run while it happens, on stderr: one bar per stage on a terminal, one plain line per state change otherwise.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/wire/messages.h"

namespace millrace::cli {

enum class ProgressStyle : std::uint8_t { kAuto, kBars, kLines, kNone };  // kAuto: bars if stderr is a terminal that can

class ProgressView {
 public:
  ProgressView(ProgressStyle style, const Clock& clock);
  // Takes an update in. Bars are redrawn at most ten times a second; call Tick often enough for the elapsed times to move.
  void Update(const wire::RunUpdate& update);
  void Tick();
  void Finish();  // draws the last state and leaves the cursor below it

 private:
  struct StageView {
    std::string name;
    JobState state = JobState::kBlocked;
    std::uint32_t deliveries = 0;
    std::int64_t rows = 0, bytes = 0;
    MonoTime started{}, ended{};
    std::string error;
  };
  void Draw();
  std::string BarLine(const StageView& stage, MonoTime now, std::size_t name_width) const;
  void Line(const StageView& stage) const;

  const Clock& clock_;
  bool bars_;
  bool lines_;
  std::vector<StageView> stages_;  // in the order they were first seen
  std::map<JobId, std::size_t> index_;
  std::size_t drawn_lines_ = 0;
  MonoTime drawn_at_{};
};

}  // namespace millrace::cli
