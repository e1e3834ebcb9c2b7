#include "client/cli/broker_client.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>
#include <unordered_set>

#include "common/wire/codec.h"
#include "common/wire/history.h"

namespace millrace::cli {
namespace {

constexpr Millis kAnswerTimeout{3000};  // then the request is sent again: it is idempotent by its ids
constexpr Millis kWaitSlice{100};
constexpr Millis kLeastTry{500};        // what has less time for its answer is not asked again
constexpr Millis kConnectSlice{5};      // between looks at a connection that is being made
constexpr Millis kWatchInterval{5000};  // a watch is renewed this often, in case the broker restarted
constexpr int kListBeginningsMax = 20;  // of a list that changes too much while it is read
constexpr std::size_t kPendingUpdatesMax = 1000;
constexpr std::size_t kRunSpecBytesMax = 4096;  // without its parameters
constexpr std::string_view kWho = "client";     // in the history

Error ToError(const wire::Problem& problem) {
  for (const ErrorCode code :
       {ErrorCode::kInvalidArgument, ErrorCode::kNotFound, ErrorCode::kConflict, ErrorCode::kStale, ErrorCode::kLimit,
        ErrorCode::kRejected, ErrorCode::kUnavailable, ErrorCode::kTimedOut, ErrorCode::kMaybeApplied, ErrorCode::kUnsupported})
    if (problem.code == Name(code)) return Error{code, problem.message};
  if (problem.code == "queue_full") return Error{ErrorCode::kLimit, "queue_full: " + problem.message};
  if (problem.code == "unreachable_input") return Error{ErrorCode::kRejected, problem.message};
  return Error{problem.code == "not_owner" ? ErrorCode::kUnavailable : ErrorCode::kRejected,
               problem.code + ": " + problem.message};
}

// After sendings whose outcome is not known, a refusal of the last one is no refusal. `all`: not even where somebody else could
// be asked.
Error Judged(Error error, bool doubt, const std::string& what, bool all = false) {
  if (!doubt || error.code == ErrorCode::kTimedOut || (BrokerClient::IsNotOwner(error) && !all)) return error;
  return {ErrorCode::kMaybeApplied,
          fmt::format("{}; but {} was sent before without an answer, and may have been taken", error.message, what)};
}

bool WorthRepeating(ErrorCode code) {
  return code == ErrorCode::kUnavailable || code == ErrorCode::kLimit || code == ErrorCode::kTimedOut;
}

std::uint64_t RequestOf(const wire::Message& message) {
  if (const auto* m = std::get_if<wire::SubmitReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::StatusReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::CancelReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::SetQueueReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::ListQueuesReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::ListUnservedReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::ListKeptReply>(&message)) return m->request;
  if (const auto* m = std::get_if<wire::Problem>(&message)) return m->request;
  return 0;
}

// The transport would go on trying to reach a socket whose process is gone.
bool NobodyListens(const std::string& endpoint) {
  constexpr std::string_view kIpc = "ipc://";
  if (!endpoint.starts_with(kIpc)) return false;
  const std::string path = endpoint.substr(kIpc.size());
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path) return false;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  const bool refused = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
                       (errno == ENOENT || errno == ECONNREFUSED);
  ::close(fd);
  return refused;
}

}  // namespace

Result<BrokerClient> BrokerClient::Connect(wire::Transport& transport, const std::string& endpoint, const Clock& clock) {
  if (NobodyListens(endpoint)) return Fail(ErrorCode::kUnavailable, "no broker answers at {}", endpoint);
  MILLRACE_TRY_ASSIGN(auto socket, transport.Connect(endpoint));
  return BrokerClient(transport, std::move(socket), clock);
}

bool BrokerClient::IsNotOwner(const Error& error) {
  return error.code == ErrorCode::kUnavailable && error.message.starts_with("not_owner: ");
}

Result<void> BrokerClient::Send(const wire::Message& message, MonoTime deadline) {
  wire::RecordMessage(kWho, message);
  const std::string frame = wire::Encode(message);
  while (true) {
    auto sent = socket_->Send(frame);
    if (sent || sent.error().code != ErrorCode::kUnavailable || clock_->Now() >= deadline) return sent;
    transport_->Wait(kConnectSlice);
  }
}

Result<wire::Message> BrokerClient::Await(std::uint64_t first, std::uint64_t last, MonoTime deadline) {
  while (clock_->Now() < deadline) {
    while (auto frame = socket_->Receive()) {
      MILLRACE_TRY_ASSIGN(wire::Message message, wire::Decode(*frame));
      wire::RecordMessage(kWho, message);
      if (auto* update = std::get_if<wire::RunUpdate>(&message)) {
        if (pending_updates_.size() < kPendingUpdatesMax) pending_updates_.push_back(std::move(*update));
        continue;
      }
      if (const std::uint64_t request = RequestOf(message); request >= first && request <= last) return message;
      // anything else answers a request that was given up
    }
    transport_->Wait(std::min(kWaitSlice, std::chrono::ceil<Millis>(deadline - clock_->Now())));
  }
  return Fail(ErrorCode::kTimedOut, "the broker did not answer");
}

BrokerClient::Repeated BrokerClient::Repeat(const std::function<wire::Message(std::uint64_t)>& make, MonoTime deadline) {
  const std::uint64_t first = next_request_;
  std::set<std::uint64_t> silent;  // sendings that nobody has answered
  bool unsure = false;             // one was answered with an unknown outcome
  std::string refusal;             // the latest
  for (in_doubt_ = false;;) {
    const std::uint64_t request = next_request_++;
    MonoTime last = deadline;  // after which it is not sent again
    Result<wire::Message> reply = Fail(ErrorCode::kUnavailable, "");
    const wire::Problem* problem = nullptr;
    if (auto sent = Send(make(request), deadline); sent) {
      silent.insert(request);
      const MonoTime patience = std::min(deadline, clock_->Now() + kAnswerTimeout);
      do {  // a refusal of an earlier sending leaves this one's answer to wait for
        reply = Await(first, request, patience);
        problem = reply ? std::get_if<wire::Problem>(&*reply) : nullptr;
        if (problem == nullptr) break;
        silent.erase(problem->request);
        refusal = ToError(*problem).message;
        if (problem->request != request) unsure = unsure || ToError(*problem).code == ErrorCode::kUnavailable;
      } while (problem->request != request);
    } else {
      reply = std::unexpected(std::move(sent.error()));
    }
    if (reply && problem == nullptr) {
      const bool doubt = unsure || (!silent.empty() && *silent.begin() < RequestOf(*reply));
      return {.reply = std::move(reply), .doubt = doubt};
    }
    in_doubt_ = unsure || !silent.empty();
    if (problem != nullptr) {
      reply = std::unexpected(ToError(*problem));
      unsure = unsure || reply.error().code == ErrorCode::kUnavailable;
      last -= kWaitSlice + kLeastTry;
    } else if (!refusal.empty()) {
      reply.error().message += "; before that: " + refusal;
    }
    // Another owner is found through the ledger.
    if (!WorthRepeating(reply.error().code) || IsNotOwner(reply.error()) || clock_->Now() >= last)
      return {.reply = std::move(reply), .doubt = in_doubt_};
    transport_->Wait(kWaitSlice);
  }
}

Result<void> BrokerClient::SubmitRun(const RunPlan& plan, bool watch, MonoTime deadline) {
  auto [reply, doubt] = Repeat(
      [&](std::uint64_t request) -> wire::Message { return wire::SubmitRun{request, plan.run, plan.jobs, watch}; }, deadline);
  if (!reply) return std::unexpected(Judged(std::move(reply.error()), doubt, fmt::format("run {}", plan.run.id.ToString())));
  if (std::holds_alternative<wire::SubmitReply>(*reply)) return {};
  return Fail(ErrorCode::kCorrupt, "unexpected answer to a submit");
}

std::size_t BrokerClient::OneMessage(std::span<const JobSpec> jobs) {
  std::size_t bytes = 0, end = 0;
  while (end < jobs.size() && end < kBatchJobsMax && (end == 0 || bytes + wire::SizeBound(jobs[end]) <= kFrameBytesMax))
    bytes += wire::SizeBound(jobs[end++]);
  return end;
}

Result<void> BrokerClient::SubmitJobs(std::span<const JobSpec> jobs, MonoTime deadline,
                                      std::vector<wire::SubmitReply::Item>& answers) {
  for (; !jobs.empty(); jobs = jobs.subspan(OneMessage(jobs))) {
    const auto first = jobs.first(OneMessage(jobs));
    const std::vector<JobSpec> page(first.begin(), first.end());
    auto [reply, doubt] =
        Repeat([&](std::uint64_t request) -> wire::Message { return wire::SubmitJobs{request, page}; }, deadline);
    if (!reply) {
      // What the ledger does not take cannot be put there to be sure.
      const bool kept =
          std::ranges::any_of(page, [](const JobSpec& job) { return job.options.durability == Durability::kRedis; });
      return std::unexpected(Judged(std::move(reply.error()), doubt, fmt::format("a submit of {} jobs", page.size()), kept));
    }
    auto* accepted = std::get_if<wire::SubmitReply>(&*reply);
    if (accepted == nullptr) return Fail(ErrorCode::kCorrupt, "unexpected answer to a submit");
    std::ranges::move(accepted->accepted, std::back_inserter(answers));
  }
  return {};
}

Result<std::vector<wire::CancelReply::Item>> BrokerClient::Cancel(wire::Cancel cancel, MonoTime deadline) {
  auto [reply, doubt] = Repeat(
      [&](std::uint64_t request) -> wire::Message {
        cancel.request = request;
        return cancel;
      },
      deadline);
  if (!reply)
    return std::unexpected(
        Judged(std::move(reply.error()), doubt, fmt::format("a request for {} of them", cancel.items.size())));
  auto* done = std::get_if<wire::CancelReply>(&*reply);
  if (done == nullptr) return Fail(ErrorCode::kCorrupt, "unexpected answer to a cancel");
  for (auto& item : done->items)
    if (doubt && item.effect == CancelEffect::kEnded && item.state == Name(JobState::kCancelled)) {
      item.effect = CancelEffect::kCancelled;
      item.state.clear();
    }
  return std::move(done->items);
}

bool BrokerClient::FitsOneMessage(const RunPlan& plan) {
  std::size_t bytes = plan.run.params.size() + kRunSpecBytesMax;
  for (const JobSpec& job : plan.jobs) bytes += wire::SizeBound(job);
  return bytes <= kFrameBytesMax;
}

Result<void> BrokerClient::Watch(OrgId org, RunId run, MonoTime deadline) {
  return Send(wire::Watch{next_request_++, org, run}, deadline);
}

Result<wire::RunUpdate> BrokerClient::Follow(OrgId org, RunId run, MonoTime deadline, const std::atomic<bool>& stop,
                                             const std::function<void(const wire::RunUpdate&)>& on_update,
                                             const std::function<void()>& on_idle) {
  MonoTime renew_watch = clock_->Now() + kWatchInterval;
  const auto take = [&](const wire::RunUpdate& update) {
    if (update.run != run) return false;
    on_update(update);
    return IsTerminal(update.state);
  };
  for (auto& update : std::exchange(pending_updates_, {}))
    if (take(update)) return std::move(update);
  while (!stop) {
    const MonoTime now = clock_->Now();
    if (now >= deadline) return Fail(ErrorCode::kTimedOut, "run {} has not ended", run.ToString());
    while (auto frame = socket_->Receive()) {
      MILLRACE_TRY_ASSIGN(wire::Message message, wire::Decode(*frame));
      wire::RecordMessage(kWho, message);
      if (auto* update = std::get_if<wire::RunUpdate>(&message); update != nullptr && take(*update)) return std::move(*update);
    }
    if (now >= renew_watch) {
      (void)socket_->Send(wire::Encode(wire::Watch{next_request_++, org, run}));  // lost: the next one follows
      renew_watch = now + kWatchInterval;
    }
    on_idle();
    transport_->Wait(std::min(kWaitSlice, std::chrono::ceil<Millis>(deadline - now)));
  }
  return Fail(ErrorCode::kCancelled, "interrupted; run {} goes on", run.ToString());
}

Result<std::vector<wire::RunUpdate::Stage>> BrokerClient::Look(OrgId org, RunId run, std::size_t stages, MonoTime deadline) {
  const std::uint64_t request = next_request_++;
  MILLRACE_TRY(Send(wire::Watch{request, org, run}, deadline));
  std::vector<wire::RunUpdate::Stage> all;
  while (clock_->Now() < deadline) {
    while (auto frame = socket_->Receive()) {
      MILLRACE_TRY_ASSIGN(wire::Message message, wire::Decode(*frame));
      wire::RecordMessage(kWho, message);
      if (const auto* problem = std::get_if<wire::Problem>(&message); problem != nullptr && problem->request == request)
        return std::unexpected(ToError(*problem));
      auto* update = std::get_if<wire::RunUpdate>(&message);
      if (update == nullptr || update->run != run) continue;
      std::ranges::move(update->changed, std::back_inserter(all));
      if (all.size() >= stages) return all;  // a long answer comes in parts
    }
    transport_->Wait(std::min(kWaitSlice, std::chrono::ceil<Millis>(deadline - clock_->Now())));
  }
  return Fail(ErrorCode::kTimedOut, "the broker did not answer");
}

Result<wire::StatusReply> BrokerClient::Status(MonoTime deadline) {
  const std::uint64_t request = next_request_++;
  MILLRACE_TRY(Send(wire::Status{request}, deadline));
  MILLRACE_TRY_ASSIGN(wire::Message reply, Await(request, deadline));
  if (auto* status = std::get_if<wire::StatusReply>(&reply)) return std::move(*status);
  if (const auto* problem = std::get_if<wire::Problem>(&reply)) return std::unexpected(ToError(*problem));
  return Fail(ErrorCode::kCorrupt, "unexpected answer to a status request");
}

Result<std::int64_t> BrokerClient::SetQueue(const QueueSettings& settings, std::string actor, MonoTime deadline) {
  const std::uint64_t request = next_request_++;
  MILLRACE_TRY(Send(wire::SetQueue{request, settings, std::move(actor)}, deadline));
  MILLRACE_TRY_ASSIGN(const wire::Message reply, Await(request, deadline));
  if (const auto* set = std::get_if<wire::SetQueueReply>(&reply)) return set->revision;
  if (const auto* problem = std::get_if<wire::Problem>(&reply)) return std::unexpected(ToError(*problem));
  return Fail(ErrorCode::kCorrupt, "unexpected answer to the settings of a queue");
}

Result<std::vector<wire::ListQueuesReply::Item>> BrokerClient::ListQueues(OrgId org, MonoTime deadline) {
  std::vector<wire::ListQueuesReply::Item> all;
  for (bool more = true; more;) {
    const std::uint64_t request = next_request_++;
    MILLRACE_TRY(Send(wire::ListQueues{request, org, all.empty() ? std::string() : all.back().settings.queue}, deadline));
    MILLRACE_TRY_ASSIGN(wire::Message reply, Await(request, deadline));
    if (const auto* problem = std::get_if<wire::Problem>(&reply)) return std::unexpected(ToError(*problem));
    auto* list = std::get_if<wire::ListQueuesReply>(&reply);
    if (list == nullptr) return Fail(ErrorCode::kCorrupt, "unexpected answer to a request for queues");
    more = list->more && !list->queues.empty();
    std::ranges::move(list->queues, std::back_inserter(all));
  }
  return all;
}

Result<void> BrokerClient::ReadKept(OrgId org, const std::string& queue, const std::string& kind,
                                    const std::function<MonoTime()>& deadline, const std::function<bool(const JobId&)>& take) {
  std::string cursor;
  for (int begun = 1;;) {
    auto reply =
        Repeat([&](std::uint64_t request) -> wire::Message { return wire::ListKept{request, org, queue, kind, cursor}; },
               deadline())
            .reply;
    if (!reply && reply.error().code == ErrorCode::kStale && begun++ < kListBeginningsMax) {
      cursor.clear();
      transport_->Wait(kWaitSlice);
      continue;
    }
    if (!reply) return std::unexpected(std::move(reply.error()));
    auto* page = std::get_if<wire::ListKeptReply>(&*reply);
    if (page == nullptr) return Fail(ErrorCode::kCorrupt, "unexpected answer to a request for jobs of durability: redis");
    if (!std::ranges::all_of(page->jobs, take)) return {};
    cursor = std::move(page->cursor);
    if (cursor.empty()) return {};
  }
}

Result<BrokerClient::Kept> BrokerClient::ListKept(OrgId org, const std::string& queue, const std::string& kind,
                                                  const std::function<bool(const JobId&)>& meant, std::size_t max,
                                                  Millis patience) {
  Kept all;
  std::unordered_set<JobId> seen;
  MILLRACE_TRY(ReadKept(
      org, queue, kind, [&] { return clock_->Now() + patience; },
      [&](const JobId& job) {
        if (!meant(job) || seen.contains(job)) return true;
        all.more = seen.size() == max;
        if (all.more) return false;
        seen.insert(job);
        all.jobs.push_back(job);
        return true;
      }));
  return all;
}

Result<void> BrokerClient::FindKept(OrgId org, const std::unordered_set<JobId>& wanted, MonoTime deadline,
                                    std::vector<JobId>& found) {
  std::unordered_set<JobId> open = wanted;
  return ReadKept(
      org, "", "", [&] { return deadline; },
      [&](const JobId& job) {
        if (open.erase(job) > 0) found.push_back(job);
        return !open.empty();
      });
}

Result<wire::ListUnservedReply> BrokerClient::ListUnserved(OrgId org, MonoTime deadline) {
  const std::uint64_t request = next_request_++;
  MILLRACE_TRY(Send(wire::ListUnserved{request, org}, deadline));
  MILLRACE_TRY_ASSIGN(wire::Message reply, Await(request, deadline));
  if (const auto* problem = std::get_if<wire::Problem>(&reply)) return std::unexpected(ToError(*problem));
  if (auto* list = std::get_if<wire::ListUnservedReply>(&reply)) return std::move(*list);
  return Fail(ErrorCode::kCorrupt, "unexpected answer to a request for what nobody serves");
}

}  // namespace millrace::cli
