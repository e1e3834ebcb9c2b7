// A client and a worker in one, over real sockets, for tests of a broker: submits jobs and sends what was not answered again,
// with the same ids; takes what is granted and ends it at once; remembers what it was told. Header only; needs
// millrace_zmtp_transport.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/wire/codec.h"
#include "common/wire/zmtp_transport.h"
#include "tests/support/accepted_list.h"

namespace millrace::testing {

// Not thread-safe: everything happens inside Pump and PumpUntil.
class JobDriver {
 public:
  struct Told {
    Durability durability = Durability::kLedger;
    MonoTime accepted_at{};
    WallTime accepted_wall{};
  };

  // An empty `back`: no worker, somebody else does the jobs.
  JobDriver(std::shared_ptr<wire::LocalNames> names, const std::string& front, const std::string& back) {
    transport_ = std::move(*wire::MakeZmtpTransport(std::move(names)));
    client_ = std::move(*transport_->Connect(front));
    if (back.empty()) return;
    worker_ = std::move(*transport_->Connect(back));
    Hello();
  }

  // What is submitted from now on. At the start "noop" with 100 bytes.
  void SubmitJobsOf(std::string kind, std::function<std::string(JobId)> payload) {
    kind_ = std::move(kind);
    payload_ = std::move(payload);
  }
  void Submit(Durability durability = Durability::kLedger, int jobs = 10) {
    const std::uint64_t request = ++last_request_;
    wire::SubmitJobs submit{.request = request, .jobs = {}};
    for (int i = 0; i < jobs; ++i) {
      JobSpec job;
      job.id = ids_.Next<JobId>();
      job.kind = kind_;
      job.payload = payload_(job.id);
      job.options.durability = durability;
      submitted_[job.id] = clock_.Now();
      submit.jobs.push_back(std::move(job));
    }
    Send(*client_, submit);
    waiting_.emplace(request, std::pair{std::move(submit), clock_.Now()});
  }

  void Pump() {
    transport_->Wait(Millis{2});
    while (auto frame = client_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message);
      if (const auto* reply = std::get_if<wire::SubmitReply>(&*message)) Accepted(*reply);
      if (const auto* problem = std::get_if<wire::Problem>(&*message))
        if (const auto it = waiting_.find(problem->request); it != waiting_.end()) {
          ++problems_[problem->code];
          it->second.second = clock_.Now() - kResendAfter + Millis{100};
        }
    }
    for (auto& [request, one] : waiting_)
      if (clock_.Now() - one.second > kResendAfter) {
        one.second = clock_.Now();
        Send(*client_, one.first);
      }
    if (!worker_) return;
    Work();
    if (clock_.Now() < next_beat_) return;
    next_beat_ = clock_.Now() + kHeartbeatInterval;
    Send(*worker_, wire::Beat{.worker = me_, .credit_limit = Limit(), .held = {}, .progress = {}, .draining = false});
  }
  // Keeps `open` submits unanswered until `done` or for `budget`; what `done` says at the end.
  template <class Done>
  bool PumpUntil(Done done, Millis budget, std::size_t open = 0) {
    for (const MonoTime until = clock_.Now() + budget; clock_.Now() < until && !::testing::Test::HasFailure();) {
      while (waiting_.size() < open) Submit();
      Pump();
      if (done()) return true;
    }
    return done();
  }
  void PumpFor(Millis time, std::size_t open = 0) {
    PumpUntil([] { return false; }, time, open);
  }

  // The worker takes at most so many jobs from now on; what else is accepted waits in the queue.
  void TakeAtMost(std::uint64_t jobs) { allowed_ = total_ + jobs; }

  bool AllAnswered() const { return waiting_.empty(); }
  std::size_t unanswered() const { return waiting_.size(); }
  const std::map<JobId, Told>& accepted() const { return accepted_; }
  const std::map<std::string, int>& problems() const { return problems_; }  // refusals of submits, by their code
  // The arguments of the history checker: what the client was told, and what the worker did, written into `folder`.
  std::vector<std::string> WriteLists(const std::filesystem::path& folder) const {
    AcceptedList list;
    for (const auto& [job, told] : accepted_) list.Job(job.uuid, told.durability == Durability::kRedis, told.accepted_wall);
    std::vector<std::string> arguments = list.Write(folder / "accepted");
    if (!worker_) return arguments;
    std::ofstream witness(folder / "witness");
    for (const auto& [job, token] : granted_) witness << job.ToString() << ' ' << token.value() << '\n';
    arguments.insert(arguments.end(), {"--witness", (folder / "witness").string()});
    return arguments;
  }
  const std::set<JobId>& recorded() const { return recorded_; }  // whose outcome the broker called durable
  MonoTime newest_recorded() const { return newest_recorded_; }  // when the latest submitted of those was submitted
  std::size_t after_end() const { return after_end_; }           // attempts of jobs whose outcome was durable
  std::size_t token_order() const { return token_order_; }       // grants whose token did not increase

 private:
  static constexpr Millis kResendAfter{1000};
  static constexpr std::uint64_t kCredit = 500;
  void Send(wire::ClientSocket& socket, const wire::Message& message) {
    const std::string frame = wire::Encode(message);
    for (const MonoTime until = clock_.Now() + Millis{5000}; !socket.Send(frame) && clock_.Now() < until;)
      transport_->Wait(Millis{1});
  }
  std::uint64_t Limit() const { return taken_ + std::min<std::uint64_t>(kCredit, allowed_ - std::min(allowed_, total_)); }
  void Hello() {
    taken_ = 0;
    Send(*worker_, wire::Hello{.worker = me_,
                               .name = "w",
                               .queues = {},
                               .kinds = {},
                               .roots = {},
                               .concurrency = 500,
                               .credit_limit = Limit(),
                               .held = {}});
  }
  void Accepted(const wire::SubmitReply& reply) {
    const auto it = waiting_.find(reply.request);
    if (it == waiting_.end()) return;
    for (const JobSpec& job : it->second.first.jobs)
      accepted_.emplace(job.id, Told{job.options.durability, clock_.Now(), clock_.WallNow()});
    waiting_.erase(it);
  }
  void Work() {
    wire::Ended ended{.worker = me_, .credit_limit = 0, .reports = {}};
    while (auto frame = worker_->Receive()) {
      auto message = wire::Decode(*frame);
      ASSERT_TRUE(message);
      if (const auto* grant = std::get_if<wire::Grant>(&*message))
        for (const auto& job : grant->jobs) {
          ++taken_;
          ++total_;
          if (recorded_.contains(job.id)) ++after_end_;
          Token& last = tokens_[job.id];
          if (job.token <= last) ++token_order_;
          last = job.token;
          granted_.emplace_back(job.id, job.token);
          AttemptReport report;
          report.job = job.id;
          report.token = job.token;
          report.end = AttemptEnd::kSucceeded;
          ended.reports.push_back(std::move(report));
        }
      if (const auto* reply = std::get_if<wire::EndedReply>(&*message))
        for (const auto& item : reply->items)
          if (item.accepted) {
            recorded_.insert(item.job);
            newest_recorded_ = std::max(newest_recorded_, submitted_[item.job]);
          }
      if (const auto* beat = std::get_if<wire::BrokerBeat>(&*message); beat != nullptr && !beat->known) Hello();
    }
    ended.credit_limit = Limit();
    if (!ended.reports.empty()) Send(*worker_, ended);
  }

  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  std::unique_ptr<wire::Transport> transport_;
  std::unique_ptr<wire::ClientSocket> client_, worker_;
  WorkerId me_ = ids_.Next<WorkerId>();
  std::map<std::uint64_t, std::pair<wire::SubmitJobs, MonoTime>> waiting_;
  std::map<JobId, MonoTime> submitted_;
  std::map<JobId, Told> accepted_;
  std::map<std::string, int> problems_;
  std::set<JobId> recorded_;
  std::map<JobId, Token> tokens_;
  std::vector<std::pair<JobId, Token>> granted_;  // in order; each was ended at once
  std::string kind_ = "noop";
  std::function<std::string(JobId)> payload_ = [](JobId) { return std::string(100, 'x'); };
  std::uint64_t last_request_ = 0, taken_ = 0, total_ = 0, allowed_ = UINT64_MAX;  // taken_: since Hello
  std::size_t after_end_ = 0, token_order_ = 0;
  MonoTime next_beat_{}, newest_recorded_{};
};

}  // namespace millrace::testing
