#include "worker/nursery_link.h"

#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/base/log.h"
#include "common/model/nursery_wire.h"

namespace millrace::worker {
namespace {

Result<void> SendAsk(int socket, NurseryAsk ask, const ChildPipes& pipes) {
  const std::array<int, kNurseryFds> fds = {pipes.child_input.get(), pipes.child_output.get(), pipes.child_frames.get()};
  std::array<char, CMSG_SPACE(sizeof fds)> control{};
  iovec data{.iov_base = &ask, .iov_len = sizeof ask};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fds);
  std::memcpy(CMSG_DATA(header), fds.data(), sizeof fds);
  ssize_t sent = 0;
  do sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent < 0) return Fail(ErrorCode::kUnavailable, "the nursery takes no ask: {}", std::strerror(errno));
  return {};
}

}  // namespace

Result<std::unique_ptr<NurseryLink>> NurseryLink::Start(Poller& poller, Options options, MonoTime now) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return Fail(ErrorCode::kUnavailable, "socketpair: {}", std::strerror(errno));
  const Fd theirs{ends[1]};
  std::unique_ptr<NurseryLink> link(new NurseryLink(poller, std::move(options), now));
  link->socket_ = Fd{ends[0]};
  ChildOptions child;
  child.argv = {link->options_.program, "--nursery"};
  child.env = link->options_.env;
  child.stdin_fd = theirs.get();
  child.nice = link->options_.nice;
  MILLRACE_TRY_ASSIGN(link->process_, Process::Start(poller, child, "nursery"));
  MILLRACE_TRY(poller.Add(link->socket_.get(), Poller::Interest::kRead, [raw = link.get()] { raw->ReadAnswers(); }));
  return link;
}

NurseryLink::~NurseryLink() {
  poller_.Remove(socket_.get());
  if (!process_) return;
  const pid_t group = process_->pid();
  process_.reset();  // kills the group, reaps the nursery
  if (!unanswered_ && asks_.empty()) return;
  // Only who was asked for and not answered can be left in the group. They are dying, so this ends.
  while (::waitpid(-group, nullptr, 0) > 0 || errno == EINTR) {
  }
}

Result<void> NurseryLink::Ask(MonoTime now, Born born) {
  if (!broken_.empty() || process_->exit()) return Fail(ErrorCode::kUnavailable, "the nursery has gone");
  MILLRACE_TRY_ASSIGN(ChildPipes pipes, MakeChildPipes());
  if (auto sent = SendAsk(socket_.get(), {.id = next_id_}, pipes); !sent) {
    broken_ = sent.error().message;
    return sent;
  }
  // It has them now; ours would keep the pipes open after its end.
  pipes.child_input.Close();
  pipes.child_frames.Close();
  pipes.child_output.Close();
  const MonoTime deadline = now + (warm_ ? options_.patience : options_.start_patience);
  asks_.push_back({next_id_++, deadline, std::move(pipes), std::move(born)});
  return {};
}

void NurseryLink::ReadAnswers() {
  while (broken_.empty()) {
    NurseryAnswer answer;
    const ssize_t got = ::recv(socket_.get(), &answer, sizeof answer, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got == static_cast<ssize_t>(sizeof answer)) {
      Answered(answer.id, answer.pid);
      continue;
    }
    if (got > 0) broken_ = "it has sent something that is no answer";
    poller_.Remove(socket_.get());  // the end of its socket is followed by its own, which says more
    return;
  }
}

void NurseryLink::Answered(std::uint64_t id, std::int64_t pid) {
  if (id == 0) {
    warm_ = true;
    return;
  }
  const auto found = std::ranges::find(asks_, id, &Asked::id);
  if (found == asks_.end()) {
    broken_ = "it has answered what nobody asked";
    return;
  }
  Asked asked = std::move(*found);
  asks_.erase(found);
  if (pid > 0) {
    ++births_;
    asked.born(Child::Adopt(static_cast<pid_t>(pid), std::move(asked.pipes)));
  } else {
    asked.born(Fail(ErrorCode::kUnavailable, "the nursery cannot fork: {}", std::strerror(static_cast<int>(-pid))));
  }
}

std::string NurseryLink::Trouble(MonoTime now) const {
  if (const auto& exit = process_->exit()) {
    const std::string tail = process_->LogText();
    return fmt::format("the nursery '{} --nursery' ended (exit code {}, signal {}){}{}", options_.program, exit->code,
                       exit->signal, tail.empty() ? "" : ": ", tail);
  }
  if (!broken_.empty()) return fmt::format("the nursery '{} --nursery' is of no use: {}", options_.program, broken_);
  if (now >= Deadline()) return fmt::format("the nursery '{} --nursery' does not answer", options_.program);
  return {};
}

MonoTime NurseryLink::Deadline() const {
  MonoTime next = warm_ ? MonoTime::max() : started_ + options_.start_patience;
  for (const Asked& asked : asks_) next = std::min(next, asked.deadline);
  return next;
}

void NurseryLink::GiveUp() {
  if (broken_.empty()) {
    broken_ = "given up";
    poller_.Remove(socket_.get());  // nobody reads it any more, and its end is always there to be read
  }
  if (!asks_.empty()) unanswered_ = true;
  for (Asked& asked : std::exchange(asks_, {})) asked.born(Fail(ErrorCode::kUnavailable, "the nursery has gone"));
}

}  // namespace millrace::worker
