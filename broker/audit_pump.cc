#include "broker/audit_pump.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"

namespace millrace {
namespace {

constexpr Millis kPageBudget{2000};

}  // namespace

AuditPump::AuditPump(AuditPumpOptions options, AuditSource& source, const Clock& clock)
    : options_(std::move(options)),
      source_(source),
      clock_(clock),
      follower_(options_.checkpointed),
      next_(clock.Now() + options_.interval) {
  MILLRACE_CHECK(options_.checkpoint && options_.page > 0, "a hook and a page of {}", options_.page);
}

MonoTime AuditPump::Step() {
  const MonoTime begin = clock_.Now();
  if (begin < next_) return next_;
  if (!looking_) look_began_ = begin;
  Page(begin + kPageBudget);
  next_ =
      looking_ ? clock_.Now() + (behind_ ? Millis{0} : kAuditRest) : std::max(clock_.Now(), look_began_ + options_.interval);
  if (!looking_ || news_.records.size() >= kAuditRecordsMax) {
    if (looking_ != std::exchange(behind_, looking_) && looking_)
      LogWarn("audit checkpoint: more than {} records at once: it reads on without rests", kAuditRecordsMax);
    HandOver();
  }
  return next_;
}

void AuditPump::Finish(Millis budget) {
  const MonoTime deadline = clock_.Now() + budget;
  looking_ = false;  // what was written since then is to be seen
  bool more = true;
  while (more && clock_.Now() < deadline) {
    Page(deadline);
    more = looking_;
    if (news_.records.size() >= kAuditRecordsMax) HandOver();
  }
  HandOver();
}

void AuditPump::Page(MonoTime deadline) {
  auto page = looking_ ? Result<AuditNews>(follower_.ReadOn(source_, options_.page, deadline))
                       : follower_.Read(source_, options_.page, deadline);
  if (!page) {
    LogWarn("audit checkpoint: {}", page.error().message);
    return;
  }
  // Less than a page although there is more: something could not be read.
  looking_ = !page->complete && page->records.size() >= options_.page;
  news_.heads = std::move(page->heads);
  news_.complete = page->complete;
  std::ranges::move(page->records, std::back_inserter(news_.records));
}

// What says that it is complete is as of the heads that the look began with, and a record that is minutes older and not in it
// will be taken for one that was dated back: so a long look asks for heads anew. Without heads nothing was read.
void AuditPump::HandOver() {
  looking_ = false;
  const AuditNews news = std::exchange(news_, {});
  if (!news.heads.empty()) options_.checkpoint(clock_.WallNow(), news);
}

}  // namespace millrace
