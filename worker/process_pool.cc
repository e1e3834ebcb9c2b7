#include "worker/process_pool.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include "common/base/log.h"

namespace millrace::worker {
namespace {

constexpr const char* kLabel = "stage process";

ChildOptions ColdChild(const ProcessPool::Options& options) {
  ChildOptions child;
  child.argv = {options.program};
  child.env = options.env;
  child.frames = true;
  child.nice = options.nice;
  return child;
}

}  // namespace

Result<std::unique_ptr<Process>> ProcessPool::StartCold() { return Process::Start(poller_, ColdChild(options_), kLabel); }

Result<std::unique_ptr<Process>> ProcessPool::AskNursery(MonoTime now) {
  if (!nursery_ || closed_) return Fail(ErrorCode::kUnavailable, "there is no nursery");
  auto process = Process::Expect(poller_, kLabel);
  MILLRACE_TRY(nursery_->Ask(
      now, [this, expected = process->handle()](Result<std::unique_ptr<Child>> child) { Born(expected, std::move(child)); }));
  return process;
}

void ProcessPool::Born(const std::weak_ptr<Process*>& expected, Result<std::unique_ptr<Child>> child) {
  const auto handle = expected.lock();
  if (!handle) return;  // nobody wants it any more: it dies here
  Process& process = **handle;
  if (child) return process.Arrive(std::move(*child));
  const auto spare = std::ranges::find(slots_, &process, [](const Slot& s) { return s.process.get(); });
  if (spare != slots_.end()) {
    slots_.erase(spare);
    return;
  }
  if (process.exit()) return;
  auto cold = Child::Spawn(ColdChild(options_));
  if (!cold) return process.NeverArrives(cold.error());
  process.Arrive(std::move(*cold));
}

Result<std::unique_ptr<Process>> ProcessPool::Take() {
  taken_ = true;
  if (expected_ != UINT64_MAX && expected_ > 0) --expected_;
  std::erase_if(slots_, [](const Slot& s) { return s.process->exit().has_value(); });
  if (slots_.empty()) {
    auto asked = AskNursery(clock_.Now());
    return asked ? std::move(asked) : StartCold();
  }
  auto chosen = std::ranges::find(slots_, true, &Slot::ready);
  if (chosen == slots_.end()) chosen = slots_.begin();
  auto process = std::move(chosen->process);
  slots_.erase(chosen);
  return process;
}

std::size_t ProcessPool::wanted() const { return static_cast<std::size_t>(std::min<std::uint64_t>(options_.warm, expected_)); }

void ProcessPool::Close() {
  closed_ = true;
  for (const Slot& slot : slots_) slot.process->SignalGroup(SIGKILL);
  if (!nursery_) return;
  nursery_->Kill();
  nursery_->GiveUp();  // a stage that waits for its child is started from nothing
}

void ProcessPool::Failed(MonoTime now, std::string_view why) {
  Millis wait = options_.retry_base * (1 << std::min(failures_, 10));
  wait = std::min(wait, options_.retry_cap);
  ++failures_;
  not_before_ = now + wait;
  LogWarn("{}; until there is a nursery again (next try in {} ms), stage processes start from nothing", why, wait.count());
}

void ProcessPool::LookAfterSpares(MonoTime now) {
  for (auto it = slots_.begin(); it != slots_.end();) {
    while (auto frame = it->process->TakeFrame()) {
      const auto message = ParseStageMessage(*frame);
      if (message && std::holds_alternative<StageReady>(*message)) it->ready = true;
    }
    if (it->ready) failures_ = 0;
    const auto& exit = it->process->exit();
    if (!exit) {
      ++it;
      continue;
    }
    const std::string tail = it->process->LogText();
    Failed(now, fmt::format("a child of the nursery ended before it had an order (exit code {}, signal {}){}{}", exit->code,
                            exit->signal, tail.empty() ? "" : ": ", tail));
    it = slots_.erase(it);
    sick_ = true;
  }
}

void ProcessPool::LookAfterNursery(MonoTime now) {
  if (nursery_) {
    const std::string trouble = nursery_->Trouble(now);
    if (!trouble.empty()) Failed(now, trouble);
    if (!trouble.empty() || sick_) {  // what its children die of, the next ones would have too
      nursery_->GiveUp();
      nursery_.reset();
    } else if (nursery_->births() >= options_.births_max && nursery_->asked() == 0 && slots_.size() >= wanted()) {
      nursery_.reset();
    }
  }
  sick_ = false;
  if (nursery_ || now < not_before_) return;
  auto started = NurseryLink::Start(poller_,
                                    {.program = options_.program,
                                     .env = options_.env,
                                     .nice = options_.nice,
                                     .patience = options_.patience,
                                     .start_patience = options_.start_patience},
                                    now);
  if (!started) return Failed(now, started.error().message);
  nursery_ = std::move(*started);
}

void ProcessPool::Tick(MonoTime now) {
  if (options_.warm == 0 || closed_) return;
  LookAfterSpares(now);
  LookAfterNursery(now);
  if (slots_.size() >= wanted()) hold_until_.reset();
  if (taken_ && !hold_until_) hold_until_ = now + options_.refill_delay;
  taken_ = false;
  if (!nursery_ || !nursery_->warm() || now < not_before_ || now < hold_until_.value_or(now)) return;
  while (slots_.size() < wanted()) {
    auto asked = AskNursery(now);
    if (!asked) {
      if (nursery_->Trouble(now).empty()) Failed(now, asked.error().message);  // else the next turn says it
      return;
    }
    slots_.push_back({std::move(*asked), false});
  }
}

MonoTime ProcessPool::NextTick() const {
  if (options_.warm == 0 || closed_) return MonoTime::max();
  if (!nursery_) return not_before_;
  const MonoTime deadline = nursery_->Deadline();
  if (!nursery_->warm() || slots_.size() >= wanted()) return deadline;
  return std::min(deadline, std::max(not_before_, hold_until_.value_or(not_before_)));
}

std::size_t ProcessPool::ready() const { return static_cast<std::size_t>(std::ranges::count(slots_, true, &Slot::ready)); }

}  // namespace millrace::worker
