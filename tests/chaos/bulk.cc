#include "tests/chaos/bulk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "common/base/limits.h"
#include "common/wire/codec.h"
#include "common/wire/zmtp_transport.h"

namespace millrace::chaos {
namespace {

constexpr std::string_view kKind = "bulk";
constexpr std::size_t kBatch = 40;
constexpr std::size_t kOpen = 6;  // requests under way
constexpr Millis kAgain{900}, kAgainAfterRefusal{60}, kTurn{2};
constexpr std::uint64_t kCredit = 400;
constexpr std::uint64_t kSlowOneIn = 4, kSlowMax = 1500;  // attempts that take up to so many ms
constexpr Millis kCrashEvery{15'000};

}  // namespace

Bulk::Bulk(BulkOptions options) : options_(std::move(options)), thread_([this](const std::stop_token& stop) { Run(stop); }) {}

Bulk::~Bulk() { Stop(); }

void Bulk::Stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

bool Bulk::AllAnswered() const {
  const std::scoped_lock lock(mutex_);
  return unanswered_ == 0;
}

std::map<JobId, Accepted> Bulk::accepted() const {
  const std::scoped_lock lock(mutex_);
  return accepted_;
}

std::size_t Bulk::accepted_count() const {
  const std::scoped_lock lock(mutex_);
  return accepted_.size();
}

void Bulk::Run(const std::stop_token& stop) {
  auto transport = wire::MakeZmtpTransport();
  if (!transport) return;  // nothing is accepted: the test fails on that
  transport_ = std::move(*transport);
  for (const std::string& endpoint : options_.client_endpoints)
    if (auto socket = transport_->Connect(endpoint)) clients_.push_back(std::move(*socket));
  for (const std::string& endpoint : options_.worker_endpoints)
    if (auto socket = transport_->Connect(endpoint)) sessions_.emplace_back().socket = std::move(*socket);
  witness_ = ::open(options_.witness.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (clients_.empty() || sessions_.empty() || witness_ < 0) return;
  began_ = clock_.Now();
  next_crash_ = began_ + kCrashEvery;
  for (Session& session : sessions_) Hello(session);
  while (!stop.stop_requested()) {
    transport_->Wait(kTurn);
    const MonoTime now = clock_.Now();
    Answers(now);
    Submit(now);
    if (options_.crashes && now >= next_crash_) Crash(now);
    std::string lines;
    for (Session& session : sessions_) Take(session, now, lines);
    // One write: the lines of commands, which append to the same file, cannot come in between.
    if (!lines.empty() && ::write(witness_, lines.data(), lines.size()) != static_cast<ssize_t>(lines.size())) break;
    for (Session& session : sessions_) End(session, now);
    for (Session& session : sessions_) Beat(session, now);
  }
  ::close(witness_);
  sessions_.clear();
  clients_.clear();
  transport_.reset();
}

void Bulk::Submit(MonoTime now) {
  const auto elapsed = static_cast<std::size_t>(std::chrono::duration_cast<Millis>(now - began_).count());
  const std::size_t due = std::min(options_.jobs, options_.per_second * elapsed / 1000);
  while (submitting_ && submitted_ < due && waiting_.size() < kOpen) {
    Request request{.submit = {.request = 0, .jobs = {}}, .first_sent = clock_.WallNow(), .again_at = now, .to = at_};
    const bool redis = (submitted_ / kBatch) % 2 == 1;
    for (std::size_t i = 0; i < kBatch; ++i, ++submitted_) {
      JobSpec job;
      job.id = ids_.Next<JobId>();
      job.kind = kKind;
      job.payload = std::string(100, 'x');
      job.retry.max_attempts = kMaxAttemptsMax;
      if (redis) job.options.durability = Durability::kRedis;
      request.submit.jobs.push_back(std::move(job));
    }
    request.submit.request = ++last_request_;
    const std::scoped_lock lock(mutex_);
    ++unanswered_;
    waiting_.emplace(last_request_, std::move(request));
  }
  for (auto& [number, request] : waiting_) {
    if (request.again_at > now) continue;
    (void)clients_[request.to]->Send(wire::Encode(request.submit));
    request.again_at = now + kAgain;
    request.to = (request.to + 1) % clients_.size();  // the next time
  }
}

void Bulk::Answers(MonoTime now) {
  for (std::size_t i = 0; i < clients_.size(); ++i) {
    while (const auto frame = clients_[i]->Receive()) {
      const auto message = wire::Decode(*frame);
      if (!message) continue;
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message)) {
        const auto it = waiting_.find(reply->request);
        if (it == waiting_.end()) continue;
        at_ = i;  // it owns the jobs
        const std::scoped_lock lock(mutex_);
        for (const JobSpec& job : it->second.submit.jobs)
          accepted_[job.id] = {.submitted_at = it->second.first_sent,
                               .accepted_at = clock_.WallNow(),
                               .redis = job.options.durability == Durability::kRedis};
        --unanswered_;
        waiting_.erase(it);
      } else if (const auto* problem = std::get_if<wire::Problem>(&*message)) {
        const auto it = waiting_.find(problem->request);
        if (it != waiting_.end()) it->second.again_at = now + kAgainAfterRefusal;
      }
    }
  }
}

void Bulk::Hello(Session& session) {
  session.taken = 0;
  wire::Hello hello{.worker = me_,
                    .name = "bulk",
                    .queues = {},
                    .kinds = {std::string(kKind)},
                    .roots = {},
                    .concurrency = kCredit,
                    .credit_limit = kCredit,
                    .held = {}};
  for (const auto& [job, held] : session.held) hello.held.push_back({job, held.token});
  (void)session.socket->Send(wire::Encode(hello));
}

void Bulk::Beat(Session& session, MonoTime now) {
  if (now < session.next_beat) return;
  session.next_beat = now + kHeartbeatInterval;
  wire::Beat beat{.worker = me_, .credit_limit = session.taken + kCredit, .held = {}, .progress = {}, .draining = false};
  for (const auto& [job, held] : session.held) beat.held.push_back({job, held.token});
  (void)session.socket->Send(wire::Encode(beat));
}

void Bulk::Take(Session& session, MonoTime now, std::string& lines) {
  while (const auto frame = session.socket->Receive()) {
    const auto message = wire::Decode(*frame);
    if (!message) continue;
    if (const auto* grant = std::get_if<wire::Grant>(&*message)) {
      for (const wire::Grant::Job& job : grant->jobs) {
        ++session.taken;
        const bool slow = random_.Below(kSlowOneIn) == 0;
        session.held[job.id] = {job.token, slow ? now + Millis{static_cast<std::int64_t>(random_.Below(kSlowMax))} : now};
        lines += fmt::format("{} {}\n", job.id.ToString(), job.token.value());
      }
    } else if (const auto* revoke = std::get_if<wire::Revoke>(&*message)) {
      for (const wire::Revoke::Item& item : revoke->items)
        if (const auto it = session.held.find(item.job); it != session.held.end() && it->second.token == item.token)
          session.held.erase(it);
    } else if (const auto* beat = std::get_if<wire::BrokerBeat>(&*message); beat != nullptr && !beat->known) {
      Hello(session);
    }
  }
}

void Bulk::End(Session& session, MonoTime now) {
  wire::Ended ended{.worker = me_, .credit_limit = session.taken + kCredit, .reports = {}};
  for (auto it = session.held.begin(); it != session.held.end();) {
    if (it->second.due > now) {
      ++it;
      continue;
    }
    AttemptReport report;
    report.job = it->first;
    report.token = it->second.token;
    report.end = AttemptEnd::kSucceeded;
    report.worker = "bulk";
    report.started_at = report.finished_at = clock_.WallNow();
    ended.reports.push_back(std::move(report));
    it = session.held.erase(it);
  }
  if (!ended.reports.empty()) (void)session.socket->Send(wire::Encode(ended));
}

// All that it held is forgotten: another worker, as far as brokers know.
void Bulk::Crash(MonoTime now) {
  next_crash_ = now + kCrashEvery;
  me_ = ids_.Next<WorkerId>();
  for (Session& session : sessions_) {
    session.held.clear();
    Hello(session);
  }
}

}  // namespace millrace::chaos
