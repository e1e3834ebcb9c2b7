#include "worker/process.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "common/base/log.h"
#include "worker/group_guard.h"

namespace millrace::worker {
namespace {

constexpr std::size_t kReadBytes = 64u << 10;
constexpr int kDrainReadsMax = 256;  // after the end; a pipe holds 16 of them, and nobody writes any more

LogTail::LineFn Forwarder(const std::shared_ptr<std::string>& label) {
  if (!LogEnabled(LogLevel::kDebug)) return {};
  return [label](std::string_view line) { LogDebug("{}: {}", *label, line); };
}

}  // namespace

Process::Process(Poller& poller, std::unique_ptr<Child> child, std::string label)
    : poller_(poller),
      child_(std::move(child)),
      label_(std::make_shared<std::string>(std::move(label))),
      tail_(Forwarder(label_)) {}

Result<std::unique_ptr<Process>> Process::Start(Poller& poller, const ChildOptions& options, std::string label) {
  auto child = Child::Spawn(options);
  if (!child) return std::unexpected(std::move(child.error()));
  std::unique_ptr<Process> process(new Process(poller, std::move(*child), std::move(label)));
  if (auto watched = process->Watch(); !watched) {
    GroupGuard::Forget(options.guard_fd, process->pid());
    return std::unexpected(std::move(watched.error()));
  }
  return process;
}

std::unique_ptr<Process> Process::Expect(Poller& poller, std::string label) {
  return std::unique_ptr<Process>(new Process(poller, nullptr, std::move(label)));
}

void Process::Arrive(std::unique_ptr<Child> child) {
  if (exit_) return;
  child_ = std::move(child);
  if (auto watched = Watch(); !watched) {
    LogWarn("{}: {}", *label_, watched.error().message);
    Unwatch();
    child_.reset();
    return NeverArrives(watched.error());
  }
  if (!unwritten_.empty()) Write(std::move(unwritten_));
}

void Process::NeverArrives(const Error& why) {
  if (exit_) return;
  tail_.Append(why.message + "\n");
  exit_ = ExitStatus{.code = 127, .signal = 0};
}

void Process::SignalGroup(int signal) {
  if (child_) return child_->SignalGroup(signal);
  if (exit_ || (signal != SIGKILL && signal != SIGTERM)) return;
  unwritten_.clear();
  exit_ = ExitStatus{.code = 0, .signal = signal};
}

Process::~Process() { Unwatch(); }

void Process::Unwatch() {
  if (!child_) return;
  for (const int fd : {child_->exit_fd(), child_->input().get(), child_->frames().get(), child_->output().get()})
    poller_.Remove(fd);
}

Result<void> Process::Watch() {
  MILLRACE_TRY(poller_.Add(child_->exit_fd(), Poller::Interest::kRead, [this] { OnExit(); }));
  MILLRACE_TRY(poller_.Add(child_->output().get(), Poller::Interest::kRead,
                           [this] { ReadSome(child_->output(), [this](std::string_view bytes) { tail_.Append(bytes); }); }));
  if (child_->frames()) {
    MILLRACE_TRY(poller_.Add(child_->frames().get(), Poller::Interest::kRead, [this] {
      ReadSome(child_->frames(), [this](std::string_view bytes) { parser_.Append(bytes); });
    }));
  }
  return {};
}

// One read per call, so that a child that floods us delays nobody else.
bool Process::ReadSome(Fd& fd, const std::function<void(std::string_view)>& sink) {
  if (!fd) return false;
  static thread_local std::array<char, kReadBytes> buffer;
  const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
  if (got > 0) {
    sink({buffer.data(), static_cast<std::size_t>(got)});
    return true;
  }
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return errno == EINTR;
  poller_.Remove(fd.get());
  fd.Close();
  return false;
}

void Process::Write(std::string bytes) {
  unwritten_ = std::move(bytes);
  if (!child_) return;
  WriteSome();
  if (unwritten_.empty()) return;
  if (auto added = poller_.Add(child_->input().get(), Poller::Interest::kWrite, [this] { WriteSome(); }); !added) {
    LogWarn("{}: {}", *label_, added.error().message);
    child_->SignalGroup(SIGKILL);
  }
}

void Process::WriteSome() {
  while (!unwritten_.empty()) {
    const ssize_t wrote = ::write(child_->input().get(), unwritten_.data(), unwritten_.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0 && errno == EAGAIN) return;
    if (wrote < 0) break;  // it is gone: its exit says the rest
    unwritten_.erase(0, static_cast<std::size_t>(wrote));
  }
  unwritten_.clear();
  poller_.Remove(child_->input().get());
  child_->input().Close();
}

std::optional<std::string> Process::TakeFrame() {
  if (frames_broken_) return std::nullopt;
  auto frame = parser_.Next();
  if (frame) return std::move(*frame);
  LogWarn("{}: {}", *label_, frame.error().message);
  frames_broken_ = true;
  return std::nullopt;
}

void Process::OnExit() {
  const auto status = child_->TryReap();  // also kills what is left of its group, so the pipes come to an end
  if (!status) return;
  poller_.Remove(child_->exit_fd());
  for (int i = 0; i < kDrainReadsMax && ReadSome(child_->frames(), [this](std::string_view b) { parser_.Append(b); }); ++i) {
  }
  for (int i = 0; i < kDrainReadsMax && ReadSome(child_->output(), [this](std::string_view b) { tail_.Append(b); }); ++i) {
  }
  exit_ = status;
}

}  // namespace millrace::worker
