// Everything the broker's ledger thread does, one step at a time: group commit, reads, taking, renewing and sharing the shards.
// Separate from the thread so that the simulation runs this very code. Not thread-safe.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "broker/events.h"
#include "common/base/clock.h"
#include "common/ledger/ledger.h"

namespace millrace {

struct LedgerPumpOptions {
  OwnerId owner;
  std::string owner_name;
  std::string clients = {};     // the endpoint where clients reach this broker; empty: not said
  std::vector<ShardId> shards;  // to share with the other brokers: each takes what is free, up to its fair share
  std::uint16_t shard_count = 1;
  bool sole = false;  // there can be no other broker: the ledger is not told that this one lives
};

class LedgerPump {
 public:
  // `ledger` and `clock` must outlive the pump.
  LedgerPump(LedgerPumpOptions options, Ledger& ledger, const Clock& clock);

  void Post(LedgerCommand command);
  // Does what is due: renewals, takes, at most one group commit and a few reads. Appends what happened. Returns when Step
  // wants to be called again at the latest (at once if Post was called).
  MonoTime Step(std::vector<Event>& out);
  bool Busy() const { return !pieces_.empty() || merged_ || !reads_.empty(); }
  // Gives the shards back, so that others need not wait for kOwnershipTtl. Nothing may be posted afterwards.
  void Release();
  const std::map<ShardId, Epoch>& holds() const { return holds_; }
  // How many shards this broker may hold: all of them, divided by the brokers that live, rounded up.
  std::size_t share() const { return share_; }

 private:
  struct Counts {
    std::size_t runs, jobs, attempts, outcomes, run_outcomes, cancels, outbox_runs, outbox_jobs, outbox_cancels, outbox_batches,
        unique_started;
  };
  struct Merged {
    OwnerBatch batch;
    std::vector<std::pair<command::Commit, Counts>> pieces;  // their rows are in `batch`, in this order
  };
  void Renew(MonoTime now, std::vector<Event>& out);
  void Announce(MonoTime now, std::vector<Event>& out);
  void YieldSurplus(MonoTime now, std::vector<Event>& out);
  void LookElsewhere(MonoTime now, std::vector<Event>& out);
  void TakeFree(MonoTime now, std::vector<Event>& out);
  void CommitSome(MonoTime now, std::vector<Event>& out);
  void TakeEnqueued(MonoTime now, std::vector<Event>& out);
  void ReadSome(std::vector<Event>& out);
  void Read(LedgerCommand& command, std::vector<Event>& out);
  void LookAtContents();
  bool ReadNothing(const LedgerCommand& command, std::vector<Event>& out);
  void Merge();
  bool RenewalDue() const { return !holds_.empty() && next_renew_ <= clock_.Now(); }
  Millis TakeDelay(ShardId shard);  // longer each time when a shard is lost as soon as it is taken
  void Split();                     // back into pieces_
  static bool Scrub(OwnerBatch& rows);
  void Refused(const Error& error, std::vector<Event>& out);
  void LoseStale(std::vector<Event>& out);
  void Lose(ShardId shard, const std::string& reason, std::vector<Event>& out);
  void DropPieces();  // those whose hold is over
  bool Holds(const ShardHold& hold) const;
  MonoTime Deadline(Millis budget) const { return clock_.Now() + budget; }

  const LedgerPumpOptions options_;
  Ledger& ledger_;
  const Clock& clock_;
  std::map<ShardId, Epoch> holds_;
  std::map<ShardId, MonoTime> next_take_;     // of the shards that are not held
  std::map<ShardId, std::string> elsewhere_;  // told already
  std::size_t share_ = 0;
  MonoTime next_announce_{};
  std::optional<MonoTime> surplus_since_;
  std::size_t surplus_ = 0;     // the smallest since then
  std::set<ShardId> yielding_;  // held, and the dispatcher was asked to let go
  struct Taken {
    MonoTime at{};
    Millis delay{0};
  };
  std::map<ShardId, Taken> taken_;
  std::deque<command::Commit> pieces_;
  std::optional<Merged> merged_;  // being committed
  bool alone_ = false;            // pieces one by one: something among them is refused
  std::deque<LedgerCommand> reads_;
  std::uint64_t reads_posted_ = 0;             // ever
  std::map<ShardId, ShardContents> contents_;  // as it was after ...
  std::uint64_t contents_for_ = 0;             // ... the first so many reads had been posted
  MonoTime next_renew_{}, renewed_{}, retry_at_{}, next_enqueued_{};
  bool enqueue_complained_ = false;
  Millis backoff_{0};
};

}  // namespace millrace
