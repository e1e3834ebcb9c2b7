#include "client/cli/stage_check.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "client/cli/context.h"
#include "client/cli/engine.h"
#include "common/base/limits.h"
#include "worker/child.h"

namespace millrace::cli {
namespace {

constexpr Millis kTick{50};  // how long a stop signal may go unnoticed
constexpr std::size_t kLengthBytes = 4;
constexpr std::size_t kSaidBytesMax = 4096;

std::string FrameOf(const std::string& request) {
  std::string frame;
  for (std::size_t i = 0; i < kLengthBytes; ++i) frame += static_cast<char>(request.size() >> (8 * i));
  return frame + request;
}

class Conversation {
 public:
  Conversation(worker::Child& child, const std::string& request) : child_(child), question_(FrameOf(request)) {}

  // Moves what can be moved, and waits for that at most `timeout`. False: the child has said all that it will.
  bool Step(Millis timeout) {
    std::array<pollfd, 3> fds{{{child_.frames().get(), POLLIN, 0},
                               {said_all_ ? -1 : child_.output().get(), POLLIN, 0},
                               {sent_ < question_.size() ? child_.input().get() : -1, POLLOUT, 0}}};
    if (::poll(fds.data(), fds.size(), static_cast<int>(timeout.count())) <= 0) return true;
    if (fds[2].revents != 0) Send();
    if (fds[1].revents != 0) said_all_ = !Receive(child_.output().get(), said_, kSaidBytesMax);
    return fds[0].revents == 0 || Receive(child_.frames().get(), answer_, kFrameBytesMax + kLengthBytes);
  }
  const std::string& answer() const { return answer_; }
  const std::string& said() const { return said_; }

 private:
  void Send() {
    const ssize_t n = ::write(child_.input().get(), question_.data() + sent_, question_.size() - sent_);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    sent_ = n < 0 ? question_.size() : sent_ + static_cast<std::size_t>(n);  // it has ended: its frames end too
    if (sent_ == question_.size()) child_.input().Close();
  }
  static bool Receive(int fd, std::string& into, std::size_t bytes_max) {
    std::array<char, 65536> buffer;
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0) return errno == EINTR || errno == EAGAIN;
    into.append(buffer.data(), std::min(static_cast<std::size_t>(n), bytes_max - std::min(bytes_max, into.size())));
    return n > 0;
  }

  worker::Child& child_;
  const std::string question_;
  std::size_t sent_ = 0;
  bool said_all_ = false;
  std::string answer_, said_;
};

std::string HowItEnded(const worker::ExitStatus& status, std::string_view said) {
  std::string text = status.signal != 0 ? fmt::format("signal {}", status.signal) : fmt::format("code {}", status.code);
  while (said.ends_with('\n')) said.remove_suffix(1);
  return said.empty() ? text : fmt::format("{}: {}", text, said);
}

std::unexpected<Error> Interrupted() {
  return Fail(ErrorCode::kCancelled, "interrupted while the types were checked: nothing was run");
}
std::unexpected<Error> TooLate() { return Fail(ErrorCode::kTimedOut, "the type check did not end in time"); }

}  // namespace

Result<std::string> AwaitStageCheck(std::future<Result<std::string>> answer, MonoTime deadline) {
  const SystemClock clock;
  while (true) {
    if (StopSignalPending()) return Interrupted();
    const Millis left = std::chrono::ceil<Millis>(deadline - clock.Now());
    if (left <= Millis{0}) return TooLate();
    if (answer.wait_for(std::min(left, kTick)) == std::future_status::ready) return answer.get();
  }
}

Result<std::string> CallStageCheck(const std::string& request, MonoTime deadline) {
  const std::string program = StageProgram();
  worker::ChildOptions options{.argv = {program, "--check"}, .env = {}, .cwd = {}, .frames = true};
  for (char** entry = environ; *entry != nullptr; ++entry) options.env.emplace_back(*entry);
  auto spawned = worker::Child::Spawn(options);
  if (!spawned) return Fail(ErrorCode::kUnavailable, "{}", spawned.error().message);
  worker::Child& child = **spawned;

  Conversation talk(child, request);
  const SystemClock clock;
  std::optional<worker::ExitStatus> status;
  for (bool talks = true; !status;) {
    if (StopSignalPending()) return Interrupted();
    const Millis left = std::chrono::ceil<Millis>(deadline - clock.Now());
    if (left <= Millis{0}) return TooLate();
    if (talks) {
      talks = talk.Step(std::min(left, kTick));
      continue;
    }
    pollfd ended{child.exit_fd(), POLLIN, 0};
    ::poll(&ended, 1, static_cast<int>(std::min(left, kTick).count()));
    status = child.TryReap();
  }
  if (talk.answer().size() < kLengthBytes || status->signal != 0 || status->code != 0)
    return Fail(ErrorCode::kCorrupt, "{} --check ended without an answer, with {}", program, HowItEnded(*status, talk.said()));
  return talk.answer().substr(kLengthBytes);
}

}  // namespace millrace::cli
