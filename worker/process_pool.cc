#include "worker/process_pool.h"

#include <algorithm>
#include <utility>

#include "common/base/log.h"

namespace millrace::worker {

Result<std::unique_ptr<Process>> ProcessPool::StartOne() {
  return Process::Start(poller_,
                        {.argv = {options_.program}, .env = options_.env, .cwd = {}, .frames = true, .nice = options_.nice},
                        "stage process");
}

Result<std::unique_ptr<Process>> ProcessPool::Take() {
  taken_ = true;
  std::erase_if(slots_, [](const Slot& s) { return s.process->exit().has_value(); });
  if (slots_.empty()) return StartOne();
  const auto ready = std::ranges::find(slots_, true, &Slot::ready);
  const auto chosen = ready == slots_.end() ? slots_.begin() : ready;
  auto process = std::move(chosen->process);
  slots_.erase(chosen);
  return process;
}

void ProcessPool::Failed(MonoTime now, std::string_view why) {
  Millis wait = options_.retry_base * (1 << std::min(failures_, 10));
  wait = std::min(wait, options_.retry_cap);
  ++failures_;
  not_before_ = now + wait;
  LogWarn("stage process: {}; the next one starts in {} ms", why, wait.count());
}

void ProcessPool::Tick(MonoTime now) {
  for (auto it = slots_.begin(); it != slots_.end();) {
    while (auto frame = it->process->TakeFrame()) {
      const auto message = ParseStageMessage(*frame);
      if (message && std::holds_alternative<StageReady>(*message)) it->ready = true;
    }
    if (it->ready) failures_ = 0;
    if (!it->process->exit()) {
      ++it;
      continue;
    }
    const std::string tail = it->process->LogText();
    const auto exit = *it->process->exit();
    it = slots_.erase(it);
    Failed(now, fmt::format("'{}' ended before it had an order (exit code {}, signal {}){}{}", options_.program, exit.code,
                            exit.signal, tail.empty() ? "" : ": ", tail));
  }
  if (slots_.size() >= options_.warm) hold_until_.reset();
  if (taken_ && !hold_until_) hold_until_ = now + options_.replace_delay;
  taken_ = false;
  if (slots_.size() >= options_.warm || now < NextTick()) return;
  auto started = StartOne();
  if (!started) return Failed(now, started.error().message);
  slots_.push_back({std::move(*started), false});
}

MonoTime ProcessPool::NextTick() const {
  if (slots_.size() >= options_.warm) return MonoTime::max();
  return std::max(not_before_, hold_until_.value_or(not_before_));
}

std::size_t ProcessPool::ready() const { return static_cast<std::size_t>(std::ranges::count(slots_, true, &Slot::ready)); }

}  // namespace millrace::worker
