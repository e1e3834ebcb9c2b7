// The broker: dispatcher, sockets and threads. Threads, each owner of what it touches:
//   loop    sockets and the Dispatcher (all dispatch state, no locks)
//   ledger  one Ledger: group commit, reads, ownership (LedgerPump)
//   audit   if checkpoints are asked for, a Ledger of its own, only read: follows the chains, has them signed (AuditPump)
//   queue   one JobQueue: executes whatever waits as one batch
//   inbox   one Inbox: turns rings into events
//   enqueue one EnqueueWatch, if there is one: tells the ledger thread that rows came
// Between them: bounded mailboxes; the loop is woken through its Transport.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "broker/audit_pump.h"
#include "broker/ledger_pump.h"
#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/ledger/enqueue_watch.h"
#include "common/ledger/ledger.h"
#include "common/queue/job_queue.h"
#include "common/wire/transport.h"

namespace millrace {

struct BrokerOptions {
  std::string name = "broker";
  OwnerId owner;                             // fresh per process start
  std::vector<std::string> front_endpoints;  // for clients; the ledger tells them of the first
  std::vector<std::string> back_endpoints;   // for workers
  std::uint16_t shard_count = kShardCountEmbedded;
  std::vector<ShardId> shards;   // to own; empty = all. Several brokers share by taking what is free
  bool sole = false;             // there can be no other broker: nobody looks for this one in the ledger
  const Clock* clock = nullptr;  // both must outlive the broker
  Random* random = nullptr;
  CheckpointHook checkpoint;                          // may be empty; called on the audit thread every 10 s and at the end
  std::map<AuditWriterId, AuditHead> checkpointed{};  // what need not be signed again: CheckpointWriter::written
  Millis stop_budget{3000};                           // how long RequestStop waits for what is being written

  // Each is called on the thread that will use what it makes: once, but make_ledger a second time when there is a `checkpoint`.
  // Never both at the same time.
  std::function<Result<std::unique_ptr<Ledger>>()> make_ledger;
  std::function<Result<std::unique_ptr<JobQueue>>()> make_queue;
  std::function<Result<std::unique_ptr<Inbox>>()> make_inbox;  // may be empty: then the outbox is polled
  // Waits for rows of the ledger's enqueue table; may be empty: then the table is polled.
  std::function<Result<std::unique_ptr<EnqueueWatch>>()> make_enqueue_watch;
  std::function<Result<std::unique_ptr<wire::Transport>>()> make_transport;
};

class Broker {
 public:
  explicit Broker(BrokerOptions options);
  ~Broker();  // RequestStop and Join
  Broker(const Broker&) = delete;
  Broker& operator=(const Broker&) = delete;

  // Binds the endpoints, opens ledger and queue, starts the threads. An error means that nothing runs.
  Result<void> Start();
  // As bound (a port of 0 is resolved); valid after Start.
  const std::vector<std::string>& front_endpoints() const;
  const std::vector<std::string>& back_endpoints() const;
  // Thread-safe and signal-safe enough to be called from a signal-handling thread. No new jobs and grants; what is being
  // written is finished (at most stop_budget), the shards are given back.
  void RequestStop();
  void Join();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
