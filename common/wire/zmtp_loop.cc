#include "common/wire/zmtp_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "common/base/log.h"
#include "common/wire/zmtp_connection.h"

namespace millrace::wire::zmtp {
namespace {

constexpr int kEventsPerTurn = 256;
constexpr int kCrowdedTurnsMax = 64;                // in a row: then timers do not wait for the rest of the events
constexpr Micros kWaitMax = std::chrono::hours{1};  // a wait may end early, so that no sum of times can overflow
constexpr Millis kSweepMax{500};
constexpr Millis kComplaintInterval{1000};

}  // namespace

struct Loop::Events {
  std::array<epoll_event, kEventsPerTurn> list;
  int count = 0;
  bool no_pwait2 = false;
};

Loop::Loop(const Times& times)
    : times_(times), events_(std::make_unique<Events>()), chunk_(std::make_unique_for_overwrite<char[]>(kChunkBytes)) {}

Loop::~Loop() = default;

Result<std::shared_ptr<Loop>> Loop::Make(const Times& times) {
  std::shared_ptr<Loop> loop(new Loop(times));
  loop->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
  loop->wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->epoll_ || !loop->wake_) return Fail(ErrorCode::kUnavailable, "epoll: {}", std::strerror(errno));
  loop->Change(EPOLL_CTL_ADD, loop->wake_.get(), EPOLLIN | EPOLLET, &loop->wake_);  // each write is an event: none is read
  loop->looked_ = loop->Now();
  return loop;
}

void Loop::Change(int operation, int fd, std::uint32_t events, void* who) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = who;
  ::epoll_ctl(epoll_.get(), operation, fd, &event);
}

bool Loop::Watch(int fd, Pollable* who) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = who;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void Loop::WatchWrites(int fd, bool writes, Pollable* who) {
  Change(EPOLL_CTL_MOD, fd, EPOLLIN | (writes ? EPOLLOUT : 0u), who);
}

void Loop::WatchReads(int fd, bool reads, Pollable* who) { Change(EPOLL_CTL_MOD, fd, reads ? EPOLLIN : 0u, who); }

void Loop::Unwatch(int fd, const Pollable* who) {
  Change(EPOLL_CTL_DEL, fd, 0, nullptr);
  for (int i = 0; i < events_->count; ++i)
    if (events_->list[static_cast<std::size_t>(i)].data.ptr == who)
      events_->list[static_cast<std::size_t>(i)].data.ptr = nullptr;
}

void Loop::Forget(const Connection* connection) {
  std::erase(corked_, connection);
  std::erase(resume_, connection);
}

void Loop::Bury(std::unique_ptr<Connection> closed) { buried_.push_back(std::move(closed)); }

void Loop::Complain(std::string_view endpoint, int fd, std::string_view problem) {
  if (now_ < next_complaint_) {  // a peer that tries again and again does not fill the log
    ++complaints_held_;
    return;
  }
  next_complaint_ = now_ + kComplaintInterval;
  const std::string others = complaints_held_ > 0 ? fmt::format(" (and {} more)", complaints_held_) : "";
  complaints_held_ = 0;
  LogWarn("{}: the connection with {} ends: {}{}", endpoint, PeerName(fd), problem, others);
}

bool Loop::HasInput() const {
  return !resume_.empty() || std::ranges::any_of(members_, [](const Member* member) { return member->HasInput(); });
}

MonoTime Loop::NextTimer() const {
  MonoTime next = next_sweep_;
  for (const Member* member : members_)
    if (const auto due = member->Due()) next = std::min(next, *due);
  return next;
}

void Loop::Wake() {  // async-signal-safe
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(wake_.get(), &one, sizeof one);
}

void Loop::Flush() {
  flushing_.swap(corked_);
  for (Connection* connection : flushing_) connection->Flush();
  flushing_.clear();
}

void Loop::Poll() {
  Flush();
  Turn(now_);
}

void Loop::Wait(Micros timeout, int extra_fd) {
  const MonoTime end = Now() + std::clamp(timeout, Micros{0}, kWaitMax);
  // Watched for this wait only: what the number means afterwards is not known here.
  if (extra_fd >= 0) Change(EPOLL_CTL_ADD, extra_fd, EPOLLIN, &extra_fd_);
  for (bool done = false; !done;) {
    Flush();
    const bool ready = stirred_ || HasInput();  // stirred by a look since the last wait: that counts for this one
    Turn(ready ? now_ : std::min(end, NextTimer()));
    done = ready || stirred_ || now_ >= end || HasInput();
  }
  stirred_ = false;
  if (extra_fd >= 0) Change(EPOLL_CTL_DEL, extra_fd, 0, nullptr);
}

int Loop::WaitForEvents(MonoTime until) {
  const auto wait = std::max<Micros>(until - now_, Micros{0});
  if (!events_->no_pwait2) {
    const timespec time{.tv_sec = wait.count() / 1'000'000, .tv_nsec = wait.count() % 1'000'000 * 1000};
    const int n = ::epoll_pwait2(epoll_.get(), events_->list.data(), kEventsPerTurn, &time, nullptr);
    if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return n;
    events_->no_pwait2 = true;  // an old kernel, or a filter of system calls that does not know it
  }
  const auto ms = static_cast<int>(std::chrono::ceil<Millis>(wait).count());
  return ::epoll_wait(epoll_.get(), events_->list.data(), kEventsPerTurn, ms);
}

void Loop::Turn(MonoTime until) {
  const int n = WaitForEvents(until);
  if (n < 0 && errno == EINTR) stirred_ = true;  // the caller may look for what its signal handler left
  events_->count = std::max(n, 0);
  ++turn_;
  looked_ = Now();
  const bool resume_first = turn_ % 2 == 0;  // neither those with more at hand nor the others always come first
  if (resume_first) Resume();
  HandleEvents();
  if (!resume_first) Resume();
  // Who has answered may be among those that are not looked at yet.
  crowded_ = n == kEventsPerTurn ? crowded_ + 1 : 0;
  if (crowded_ == 0 || crowded_ > kCrowdedTurnsMax) RunTimers();
  buried_.clear();
}

void Loop::Resume() {
  resuming_.swap(resume_);
  const std::size_t count = resuming_.size();
  for (std::size_t i = 0; i < count; ++i) resuming_[(i + turn_ / 2) % count]->Resume();
  resuming_.clear();
}

void Loop::HandleEvents() {
  const auto count = static_cast<std::size_t>(events_->count);
  // From another place each time: when the room for input ends, it does not always end before the same peers.
  for (std::size_t i = 0; i < count; ++i) {
    const epoll_event event = events_->list[(i + turn_) % count];
    if (event.data.ptr == nullptr) continue;
    if (event.data.ptr == &wake_ || event.data.ptr == &extra_fd_) {
      stirred_ = true;
      continue;
    }
    const bool broken = (event.events & (EPOLLERR | EPOLLHUP)) != 0;  // found by reading or writing
    static_cast<Pollable*>(event.data.ptr)
        ->OnEvents(broken || (event.events & EPOLLIN) != 0, broken || (event.events & EPOLLOUT) != 0);
  }
  events_->count = 0;
}

// After the events: what came while this process was away counts before its silence does.
void Loop::RunTimers() {
  if (now_ >= next_sweep_) {
    next_sweep_ = now_ + std::min<Millis>(kSweepMax, times_.heartbeat / 4);
    for (Member* member : members_) member->Sweep(now_);
  }
  for (Member* member : members_)
    if (const auto due = member->Due(); due && *due <= now_) member->OnDue(now_);
}

}  // namespace millrace::wire::zmtp
