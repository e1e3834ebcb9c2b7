#include "client/bench/steady_window.h"

#include <algorithm>

namespace millrace::bench {

std::uint64_t SteadyWindow::Look(std::uint64_t accepted) {
  const Scoreboard& board = fleet_.board();
  const auto allowed = [&](std::uint64_t recorded) { return options_.depth + held_ + recorded; };
  if (const std::uint64_t recorded = board.Recorded(); result_.complete || recorded < options_.warmup) return allowed(recorded);
  if (!begun_) meter_.Begin(fleet_.processes());  // takes a while: before the clock is read
  const Mark now{.at = clock_.Now(), .executed = board.Executed(), .recorded = board.Recorded()};
  const std::uint64_t waiting = accepted > now.executed ? accepted - now.executed : 0;
  if (!begun_) {
    begun_ = true;
    begin_ = now;
    result_.waiting_min = result_.waiting_max = waiting;
  } else {
    waiting_time_ += static_cast<double>(waiting) * static_cast<double>((now.at - last_.at).count());
    result_.waiting_min = std::min(result_.waiting_min, waiting);
    result_.waiting_max = std::max(result_.waiting_max, waiting);
  }
  last_ = now;
  if (now.recorded >= options_.warmup + options_.jobs && now.recorded > begin_.recorded) End(now);
  return allowed(now.recorded);
}

void SteadyWindow::End(const Mark& now) {
  result_.complete = true;
  result_.jobs = now.recorded - begin_.recorded;
  result_.costs = meter_.End(fleet_.processes(), static_cast<double>(result_.jobs));
  const double micros = std::max(1.0, static_cast<double>((now.at - begin_.at).count()));
  result_.executed_per_s = static_cast<double>(now.executed - begin_.executed) * 1e6 / micros;
  result_.recorded_per_s = static_cast<double>(result_.jobs) * 1e6 / micros;
  result_.waiting_mean = waiting_time_ / micros;
}

}  // namespace millrace::bench
