// The messages that benches encode, decode and hand to a dispatcher: batches of 100 jobs with 100 bytes of payload each, the
// same in every process. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "broker/lines.h"
#include "client/bench/payload.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/wire/messages.h"

namespace millrace::bench {

inline constexpr int kBatch = 100;  // jobs of one message
inline constexpr std::size_t kPayloadBytes = 100;

class SampleMessages {
 public:
  JobSpec Job(std::uint64_t number) {
    JobSpec job;
    job.id = ids_.Next<JobId>();
    job.kind = "work";
    job.payload = EncodePayload({.number = number}, kPayloadBytes);
    job.submitted_at = clock_.WallNow();
    return job;
  }
  // The same with 4 priorities, 1,000 orgs and 10,000 limit keys, dealt out in turn as `bench queue` does.
  JobSpec CrowdJob(std::uint64_t number) {
    JobSpec job = Job(number);
    job.priority = static_cast<int>(number % 4);
    job.org = OrgId{1 + static_cast<std::int64_t>(number % 1'000)};
    job.options.limit_key = "key-" + std::to_string(number % 10'000);
    return job;
  }
  // The line in which a job with a queue, a priority and an org alone waits.
  static LineKey LineOf(const JobSpec& job) {
    return {.queue = job.queue, .priority = job.priority, .org = job.org, .root = "", .kind = job.kind, .limit_key = ""};
  }
  AttemptReport Report(JobId job, Token token) const {
    AttemptReport report;
    report.job = job;
    report.token = token;
    report.end = AttemptEnd::kSucceeded;
    report.worker = "worker-1";
    report.started_at = report.finished_at = clock_.WallNow();
    return report;
  }

  wire::Message Submit() {
    wire::SubmitJobs m{.request = 1, .jobs = {}};
    for (std::uint64_t i = 0; i < kBatch; ++i) m.jobs.push_back(Job(i));
    return m;
  }
  wire::Message Accepted() {
    wire::SubmitReply m{.request = 1, .accepted = {}};
    for (int i = 0; i < kBatch; ++i) m.accepted.push_back({.id = ids_.Next(), .duplicate = false, .conflict_with = {}});
    return m;
  }
  wire::Message Grant() {
    wire::Grant m;
    for (std::uint64_t i = 0; i < kBatch; ++i) {
      JobSpec job = Job(i);
      m.jobs.push_back({.id = job.id, .token = Token{i + 1}, .kind = job.kind, .payload = job.payload});
    }
    return m;
  }
  wire::Message Ended() {
    wire::Ended m{.worker = ids_.Next<WorkerId>(), .credit_limit = 100, .reports = {}};
    for (std::uint64_t i = 0; i < kBatch; ++i) m.reports.push_back(Report(ids_.Next<JobId>(), Token{i + 1}));
    return m;
  }

  FakeClock& clock() { return clock_; }
  Random& random() { return random_; }
  IdGenerator& ids() { return ids_; }

 private:
  FakeClock clock_;
  SeededRandom random_{1};
  IdGenerator ids_{clock_, random_};
};

}  // namespace millrace::bench
