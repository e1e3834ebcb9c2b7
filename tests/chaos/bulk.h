// Many small jobs of both durability classes: a client that repeats what was not answered, with the same ids, and a worker of
// their kind, connected to every broker. The work of an attempt is one line "<job> <token>" in the witness file. Some attempts
// take a moment, so that leases are always under way.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/wire/messages.h"
#include "common/wire/transport.h"
#include "tests/chaos/submitter.h"

namespace millrace::chaos {

struct BulkOptions {
  std::vector<std::string> client_endpoints, worker_endpoints;
  std::string witness;
  std::uint64_t seed = 1;
  std::size_t jobs = 0;        // no more than these,
  std::size_t per_second = 0;  // at this pace since the start; after an outage, faster until it is caught up with
  bool crashes = true;         // now and then the worker forgets what it runs
};

// Thread-safe. The thread starts with the constructor.
class Bulk {
 public:
  explicit Bulk(BulkOptions options);
  ~Bulk();

  // Submits no more; goes on working. What was sent is repeated until it is answered.
  void StopSubmitting() { submitting_ = false; }
  bool AllAnswered() const;
  // Ends the thread.
  void Stop();
  std::map<JobId, Accepted> accepted() const;
  std::size_t accepted_count() const;

 private:
  struct Request {
    wire::SubmitJobs submit;
    WallTime first_sent{};
    MonoTime again_at{};
    std::size_t to = 0;
  };
  struct Held {
    Token token;
    MonoTime due{};
  };
  struct Session {  // with one broker
    std::unique_ptr<wire::ClientSocket> socket;
    std::map<JobId, Held> held;
    std::uint64_t taken = 0;  // since Hello
    MonoTime next_beat{};
  };
  void Run(const std::stop_token& stop);
  void Submit(MonoTime now);
  void Answers(MonoTime now);
  void Hello(Session& session);
  void Beat(Session& session, MonoTime now);
  void Take(Session& session, MonoTime now, std::string& lines);
  void End(Session& session, MonoTime now);
  void Crash(MonoTime now);

  const BulkOptions options_;
  SystemClock clock_;
  SeededRandom random_{options_.seed};
  SystemRandom id_random_;
  IdGenerator ids_{clock_, id_random_};
  WorkerId me_ = ids_.Next<WorkerId>();
  std::unique_ptr<wire::Transport> transport_;
  std::vector<std::unique_ptr<wire::ClientSocket>> clients_;
  std::vector<Session> sessions_;
  std::map<std::uint64_t, Request> waiting_;
  std::uint64_t last_request_ = 0;
  std::size_t submitted_ = 0, at_ = 0;
  MonoTime began_{}, next_crash_{};
  int witness_ = -1;
  std::atomic<bool> submitting_{true};
  mutable std::mutex mutex_;
  std::map<JobId, Accepted> accepted_;  // guarded by mutex_
  std::size_t unanswered_ = 0;          // guarded by mutex_
  std::jthread thread_;                 // last: it uses the rest
};

}  // namespace millrace::chaos
