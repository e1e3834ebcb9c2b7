#include "client/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "client/cli/output.h"
#include "common/base/tell.h"

namespace millrace::cli {
namespace {

constexpr Millis kRedrawInterval{100};
constexpr std::size_t kBarStagesMax = 16;  // more stages than this: only those that run or failed are drawn

bool TerminalCanDraw() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) != 0 && term != nullptr && std::string_view(term) != "dumb" && std::getenv("CI") == nullptr;
}

std::size_t TerminalColumns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

ProgressView::ProgressView(ProgressStyle style, const Clock& clock)
    : clock_(clock),
      bars_(style == ProgressStyle::kBars || (style == ProgressStyle::kAuto && TerminalCanDraw())),
      lines_(style == ProgressStyle::kLines || (style == ProgressStyle::kAuto && !TerminalCanDraw())) {}

void ProgressView::Update(const wire::RunUpdate& update) {
  const MonoTime now = clock_.Now();
  for (const auto& change : update.changed) {
    const auto [it, added] = index_.emplace(change.job, stages_.size());
    if (added)
      stages_.push_back({.name = change.stage,
                         .state = JobState::kBlocked,
                         .deliveries = 0,
                         .rows = 0,
                         .bytes = 0,
                         .started = {},
                         .ended = {},
                         .error = {}});
    StageView& stage = stages_[it->second];
    const bool moved = stage.state != change.state || stage.deliveries != change.counters.deliveries;
    if (change.state == JobState::kRunning && stage.state != JobState::kRunning) stage.started = now;
    if (IsTerminal(change.state) && !IsTerminal(stage.state)) stage.ended = now;
    stage.state = change.state;
    stage.deliveries = change.counters.deliveries;
    stage.rows = std::max(stage.rows, change.rows);
    stage.bytes = std::max(stage.bytes, change.bytes);
    stage.error = change.error;
    if (lines_ && moved) Line(stage);
  }
  if (bars_ && now - drawn_at_ >= kRedrawInterval) Draw();
}

void ProgressView::Tick() {
  if (bars_ && clock_.Now() - drawn_at_ >= kRedrawInterval) Draw();
}

void ProgressView::Finish() {
  if (bars_) Draw();
  drawn_lines_ = 0;
}

void ProgressView::Line(const StageView& stage) const {
  std::string text = fmt::format("stage {}: {}", stage.name, Name(stage.state));
  if (stage.started != MonoTime{} && stage.ended != MonoTime{}) text += " in " + HumanDuration(stage.ended - stage.started);
  if (!stage.error.empty()) text += ": " + stage.error;
  Tell("{}\n", text);
}

std::string ProgressView::BarLine(const StageView& stage, MonoTime now, std::size_t name_width) const {
  static constexpr std::string_view kSpinner = "|/-\\";
  std::string mark = ".";
  if (stage.state == JobState::kRunning)
    mark = kSpinner[static_cast<std::size_t>(now.time_since_epoch() / kRedrawInterval) % kSpinner.size()];
  if (stage.state == JobState::kSucceeded) mark = "+";
  if (stage.state == JobState::kDead || stage.state == JobState::kCancelled || stage.state == JobState::kExpired) mark = "x";
  if (stage.state == JobState::kSkipped) mark = "-";
  std::string text = fmt::format(" {} {:<{}}  {:<10}", mark, stage.name, name_width, Name(stage.state));
  if (stage.started != MonoTime{}) {
    const Micros elapsed = (stage.ended != MonoTime{} ? stage.ended : now) - stage.started;
    if (stage.rows > 0) text += fmt::format(" {:>13} rows", HumanCount(stage.rows));
    if (stage.bytes > 0 && elapsed.count() > 0)
      text += fmt::format("  {:>7.1f} MB/s", static_cast<double>(stage.bytes) / static_cast<double>(elapsed.count()));
    text += "  " + HumanDuration(elapsed);
  }
  if (!stage.error.empty()) text += "  " + stage.error;
  return text;
}

void ProgressView::Draw() {
  const MonoTime now = clock_.Now();
  const std::size_t columns = TerminalColumns();
  std::size_t name_width = 0;
  for (const auto& stage : stages_) name_width = std::max(name_width, stage.name.size());
  std::string out;
  if (drawn_lines_ > 0) out += fmt::format("\x1b[{}A", drawn_lines_);
  std::size_t drawn = 0;
  for (const auto& stage : stages_) {
    const bool interesting = stage.state == JobState::kRunning || stage.state == JobState::kDead;
    if (stages_.size() > kBarStagesMax && !interesting) continue;
    if (drawn == kBarStagesMax) break;
    std::string line = BarLine(stage, now, std::min<std::size_t>(name_width, 40));
    if (line.size() > columns - 1) line.resize(columns - 1);
    out += "\r\x1b[2K" + line + "\n";
    ++drawn;
  }
  while (drawn < drawn_lines_) {  // fewer lines than last time: clear the rest, keep the height
    out += "\r\x1b[2K\n";
    ++drawn;
  }
  TellText(out);
  drawn_lines_ = drawn;
  drawn_at_ = now;
}

}  // namespace millrace::cli
