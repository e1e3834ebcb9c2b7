// A client that submits single command jobs all the time and remembers what it was told. Each job appends one line
// "<job> <token>" to a witness file outside Millrace with one write on a descriptor opened with O_APPEND.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/wire/messages.h"

namespace millrace::chaos {

struct Accepted {
  WallTime submitted_at{};  // when it was sent for the first time
  WallTime accepted_at{};   // when a broker said that it has it
  bool redis = false;       // its durability class
};

// Thread-safe. The thread starts with the constructor.
class Submitter {
 public:
  Submitter(std::vector<std::string> endpoints, std::string witness);
  ~Submitter();

  // Submits no more; what was never answered stays unanswered. Returns when the thread has ended.
  void Stop();
  std::map<JobId, Accepted> accepted() const;
  std::uint64_t unanswered() const;  // jobs of the last batch, if Stop came before its answer

 private:
  void Run(const std::stop_token& stop);
  std::vector<JobSpec> MakeBatch();

  const std::vector<std::string> endpoints_;
  const std::string witness_;
  SystemClock clock_;
  SystemRandom random_;
  IdGenerator ids_{clock_, random_};
  mutable std::mutex mutex_;
  std::map<JobId, Accepted> accepted_;
  std::uint64_t unanswered_ = 0;
  std::jthread thread_;  // last: it uses the rest
};

}  // namespace millrace::chaos
