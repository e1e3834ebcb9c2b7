// How much waits in each queue of a shard, and in all queues of an org, against what the org allows. "Waits" is what is in the
// queue (ready, or due later) plus what is being accepted; blocked jobs of a run do not wait yet. Not thread-safe: part of a
// shard's state.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/job.h"
#include "common/model/queue_settings.h"

namespace millrace {

class QueueBudgets {
 public:
  struct Amount {
    std::uint64_t jobs = 0, bytes = 0;
  };
  struct Less {  // also by a name that is not a string of its own
    using is_transparent = void;
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return a.first != b.first ? a.first < b.first : std::string_view(a.second) < std::string_view(b.second);
    }
  };
  using Amounts = std::map<std::pair<OrgId, std::string>, Amount, Less>;

  QueueBudgets() = default;
  QueueBudgets(QueueBudgets&&) = default;
  QueueBudgets& operator=(QueueBudgets&&) = default;

  // Of a queue, or under kWholeOrg of all queues of the org together.
  void Limit(const QueueSettings& settings);
  bool Limited() const { return !limits_.empty() || !orgs_.empty(); }
  // Into the queue; out of it with a claim (the bytes of a job that nobody knows any more: about).
  void Enqueued(OrgId org, const std::string& queue, std::size_t bytes, std::uint64_t jobs = 1);
  void Claimed(OrgId org, const std::string& queue, std::optional<std::size_t> bytes);
  // On its way into the ledger, summed up in `piece`; when the piece is committed or refused, it is over.
  void Accepting(const JobSpec& job, Amounts& piece);
  void Accepted(const Amounts& piece);
  // When `more` does not fit. kLimit: not now; kInvalidArgument: never, however little waits. Under kWholeOrg: into the org.
  std::optional<Error> Refusal(OrgId org, const std::string& queue, Amount more) const;
  // Under kWholeOrg: the sum, when the org has a limit.
  Amount Waiting(OrgId org, const std::string& queue) const;
  // Of every queue of the org in which something waits.
  std::map<std::string, Amount> WaitingOf(OrgId org) const;

 private:
  using Name = std::pair<OrgId, std::string>;
  struct NameHash {
    using is_transparent = void;
    template <class T>
    std::size_t operator()(const T& of) const {
      return std::hash<std::string_view>{}(of.second) ^ (std::hash<OrgId>{}(of.first) * std::size_t{0x9e3779b97f4a7c15});
    }
  };
  struct NameEqual {
    using is_transparent = void;
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return a.first == b.first && std::string_view(a.second) == std::string_view(b.second);
    }
  };
  struct Wait {
    Amount amount;
    Amount* of_org = nullptr;  // the sum that this is part of, when the org has a limit: a job costs no other look-up
  };
  using Waits = std::unordered_map<Name, Wait, NameHash, NameEqual>;
  struct Org {
    Amount limit;  // 0 = none
    Amount waits;
  };
  void LimitOrg(OrgId org, Amount limit);
  void Add(Waits& to, OrgId org, const std::string& queue, Amount more);
  static void Sub(Waits& from, Waits::iterator it, Amount less);
  static Amount Of(const Waits& waits, OrgId org, const std::string& queue);

  Waits in_queue_, accepting_;
  Amounts limits_;             // of queues; 0 = none
  std::map<OrgId, Org> orgs_;  // those with a limit of their own; a node stays where it is
};

}  // namespace millrace
