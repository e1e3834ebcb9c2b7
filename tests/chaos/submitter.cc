#include "tests/chaos/submitter.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "common/model/stage_task.h"
#include "common/wire/codec.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::chaos {
namespace {

constexpr Millis kBetweenBatches{150};
constexpr Millis kAnswerTimeout{700};
constexpr Millis kSlice{20};
constexpr std::size_t kBatchMax = 3;

// The answer to a batch that was sent as the requests from `first` to `request`: 1 accepted, 0 refused, empty: none in time.
// Over a slow link the answer to an earlier sending comes after the next one.
std::optional<bool> AwaitAnswer(wire::Transport& transport, wire::ClientSocket& socket, std::uint64_t first,
                                std::uint64_t request, const Clock& clock, const std::stop_token& stop) {
  const MonoTime until = clock.Now() + kAnswerTimeout;
  while (clock.Now() < until && !stop.stop_requested()) {
    while (const auto frame = socket.Receive()) {
      const auto message = wire::Decode(*frame);
      if (!message) continue;
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message); reply && reply->request >= first) return true;
      if (const auto* problem = std::get_if<wire::Problem>(&*message); problem && problem->request == request) return false;
    }
    transport.Wait(kSlice);
  }
  return std::nullopt;
}

}  // namespace

Submitter::Submitter(std::vector<std::string> endpoints, std::string witness)
    : endpoints_(std::move(endpoints)),
      witness_(std::move(witness)),
      thread_([this](const std::stop_token& stop) { Run(stop); }) {}

Submitter::~Submitter() { Stop(); }

void Submitter::Stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

std::map<JobId, Accepted> Submitter::accepted() const {
  const std::scoped_lock lock(mutex_);
  return accepted_;
}

std::uint64_t Submitter::unanswered() const {
  const std::scoped_lock lock(mutex_);
  return unanswered_;
}

std::vector<JobSpec> Submitter::MakeBatch() {
  std::vector<JobSpec> batch(1 + random_.Below(kBatchMax));
  for (JobSpec& job : batch) {
    job.id = ids_.Next<JobId>();
    job.kind = kJobKindCommand;
    CommandTask task;
    task.job = job.id;
    // The shell opens with O_APPEND for ">>", and its printf is one write.
    task.command.argv = {"/bin/sh", "-c", "printf '%s %s\\n' \"$MILLRACE_JOB\" \"$MILLRACE_TOKEN\" >> \"$0\"", witness_};
    task.base_dir = "/";
    job.payload = ToJson(task);
    job.priority = 0;  // how soon they end is to say when service is back, not how many loads wait
    job.retry.max_attempts = kMaxAttemptsMax;
    job.retry.backoff_base = Millis{100};
    job.retry.backoff_cap = Millis{1000};
  }
  return batch;
}

void Submitter::Run(const std::stop_token& stop) {
  auto transport = wire::MakeZmtpTransport();
  if (!transport) return;  // nothing is accepted: the checker fails on that
  std::vector<std::unique_ptr<wire::ClientSocket>> sockets;
  for (const std::string& endpoint : endpoints_)
    if (auto socket = (*transport)->Connect(endpoint)) sockets.push_back(std::move(*socket));
  if (sockets.size() != endpoints_.size()) return;
  std::uint64_t request = 0;
  std::size_t at = 0;
  while (!stop.stop_requested()) {
    const std::vector<JobSpec> batch = MakeBatch();
    const WallTime first_sent = clock_.WallNow();
    bool accepted = false;
    const std::uint64_t first = request + 1;
    // The same ids again until somebody says yes: an answer that does not come says nothing.
    while (!accepted && !stop.stop_requested()) {
      ++request;
      const auto sent = sockets[at]->Send(wire::Encode(wire::SubmitJobs{.request = request, .jobs = batch}));
      const auto answer = sent ? AwaitAnswer(**transport, *sockets[at], first, request, clock_, stop) : std::nullopt;
      accepted = answer.value_or(false);
      if (accepted) break;
      at = (at + 1) % sockets.size();
      (*transport)->Wait(kSlice);
    }
    {
      const std::scoped_lock lock(mutex_);
      for (const JobSpec& job : batch) {
        if (accepted)
          accepted_[job.id] = {.submitted_at = first_sent, .accepted_at = clock_.WallNow()};
        else
          ++unanswered_;
      }
    }
    const MonoTime until = clock_.Now() + kBetweenBatches;
    while (clock_.Now() < until && !stop.stop_requested()) (*transport)->Wait(kSlice);
  }
}

}  // namespace millrace::chaos
