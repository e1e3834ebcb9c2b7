#include "broker/broker.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "broker/dispatcher.h"
#include "broker/mailbox.h"
#include "common/base/log.h"
#include "common/base/thread_name.h"
#include "common/wire/history.h"

namespace millrace {
namespace {

constexpr std::size_t kMailboxItemsMax = 100'000;
constexpr std::size_t kQueueOpsMax = 4096;          // of one JobQueue::Execute
constexpr int kReceivePerRound = 1000;              // messages of one socket before the commands go out
constexpr Millis kInboxWait{250};                   // a stop is noticed after it
constexpr std::size_t kUnsentBytesMax = 32u << 20;  // kept for one peer that does not read
constexpr std::size_t kUnsentFrameBytes = 64;       // what keeping a frame costs beside its bytes
constexpr Millis kAuditFinishBudget{2000};
constexpr auto kIdleWait = kDispatcherTick;
constexpr Millis kFinishWait{1};  // for ended jobs to leave the flight together with something else

bool IsFinish(const command::Execute& execute) { return std::holds_alternative<queue_op::Finish>(execute.op); }

std::vector<ShardId> AllShards(std::uint16_t count) {
  std::vector<ShardId> shards;
  for (std::uint16_t i = 0; i < count; ++i) shards.emplace_back(i);
  return shards;
}

}  // namespace

class Broker::Impl {
 public:
  explicit Impl(BrokerOptions options)
      : options_(std::move(options)), events_(kMailboxItemsMax), ledger_box_(kMailboxItemsMax), queue_box_(kMailboxItemsMax) {
    if (options_.shards.empty()) options_.shards = AllShards(options_.shard_count);
  }

  Result<void> Start() {
    std::promise<Result<void>> loop, ledger, queue, inbox, audit;
    auto loop_ready = loop.get_future(), ledger_ready = ledger.get_future(), queue_ready = queue.get_future(),
         inbox_ready = inbox.get_future();
    // The loop first: the others wake it.
    Spawn("mr-loop", [this, p = std::move(loop)]() mutable { Loop(std::move(p)); });
    Result<void> started = loop_ready.get();
    if (started) {
      Spawn("mr-queue", [this, p = std::move(queue)]() mutable { QueueThread(std::move(p)); });
      Spawn("mr-inbox", [this, p = std::move(inbox)]() mutable { InboxThread(std::move(p)); });
      started = queue_ready.get();
      if (auto other = inbox_ready.get(); started) started = std::move(other);
    }
    if (started) {
      if (options_.make_enqueue_watch) Spawn("mr-enqueue", [this] { EnqueueThread(); });
      Spawn("mr-ledger", [this, p = std::move(ledger)]() mutable { LedgerThread(std::move(p)); });
      started = ledger_ready.get();
    }
    if (started && options_.checkpoint) {
      auto audit_ready = audit.get_future();
      Spawn("mr-audit", [this, p = std::move(audit)]() mutable { AuditThread(std::move(p)); });
      started = audit_ready.get();
    }
    if (!started) {
      aborted_ = true;
      RequestStop();
      Join();
      return std::unexpected(std::move(started.error()));
    }
    LogInfo("broker '{}': clients on {}, workers on {}", options_.name, fmt::join(front_names_, ", "),
            fmt::join(back_names_, ", "));
    return {};
  }

  void RequestStop() {
    stop_ = true;
    stop_bell_.Close();
    Wake();
  }

  void Join() {
    for (auto& thread : threads_)
      if (thread.joinable()) thread.join();
    threads_.clear();
  }

  std::vector<std::string> front_names_, back_names_;

 private:
  template <class Work>
  void Spawn(const char* name, Work work) {
    threads_.emplace_back([name, work = std::move(work)]() mutable {
      NameThread(name);
      work();
    });
  }

  struct Unsent {
    std::vector<std::string> frames;
    std::size_t bytes = 0;
    void Add(std::string frame) {
      bytes += frame.size() + kUnsentFrameBytes;
      frames.push_back(std::move(frame));
    }
  };

  // Unless `now`, the loop takes it when something else wakes it, at the latest at its next tick.
  void Post(Event event, bool now = true) {
    if (!events_.Put(std::move(event)) || !now) return;
    // One wake-up per batch is enough: the loop takes everything.
    if (!wake_pending_.exchange(true)) Wake();
  }

  void Wake() {
    const std::scoped_lock lock(wake_mutex_);
    if (transport_ != nullptr) transport_->Wake();
  }
  void SetTransport(wire::Transport* transport) {
    const std::scoped_lock lock(wake_mutex_);
    transport_ = transport;
  }

  // ---- loop thread -------------------------------------------------------------------------------------------------------
  Result<void> OpenSockets(wire::Transport& transport) {
    const auto bind = [&](const std::vector<std::string>& endpoints, auto& sockets, auto& names) -> Result<void> {
      for (const std::string& endpoint : endpoints) {
        auto socket = transport.Bind(endpoint);
        if (!socket) return Prefixed(std::move(socket.error()), "bind {}", endpoint);
        names.push_back((*socket)->Endpoint());
        sockets.push_back(std::move(*socket));
      }
      return {};
    };
    MILLRACE_TRY(bind(options_.front_endpoints, front_, front_names_));
    MILLRACE_TRY(bind(options_.back_endpoints, back_, back_names_));
    return {};
  }

  void Loop(std::promise<Result<void>> ready) {
    auto transport = options_.make_transport();
    Result<void> opened = transport ? OpenSockets(**transport) : Result<void>(std::unexpected(std::move(transport.error())));
    if (!opened) {
      front_.clear();
      back_.clear();
      ready.set_value(std::move(opened));
      return;
    }
    SetTransport(transport->get());
    ready.set_value({});
    Dispatcher dispatcher(
        {.name = options_.name, .shard_count = options_.shard_count, .shards = options_.shards, .random = options_.random});
    RunLoop(dispatcher, **transport);
    ledger_box_.Close();
    queue_box_.Close();
    events_.Close();
    SetTransport(nullptr);
    front_.clear();
    back_.clear();
  }

  void RunLoop(Dispatcher& dispatcher, wire::Transport& transport) {
    const Clock& clock = *options_.clock;
    std::vector<Command> commands;
    MonoTime next_tick = clock.Now();
    std::optional<MonoTime> stop_at;
    bool more = false;
    while (true) {
      transport.Wait(more ? Micros{0} : WaitFor(dispatcher, next_tick));
      wake_pending_ = false;
      const MonoTime now = clock.Now();
      const WallTime wall = clock.WallNow();
      for (Event& event : events_.TakeAll(Micros{0})) dispatcher.Handle(std::move(event), now, wall);
      more = Receive(dispatcher, now, wall);
      if (stop_ && !stop_at) {
        stop_at = now + options_.stop_budget;
        dispatcher.Handle(event::StopRequested{}, now, wall);
      }
      if (now >= next_tick) {
        next_tick = now + kDispatcherTick;
        RetryUnsent();
        dispatcher.Handle(event::Tick{}, now, wall);
      }
      commands.clear();
      dispatcher.Flush(now, wall, commands);
      for (Command& command : commands) Issue(command, dispatcher);
      if (stop_at && (aborted_ || dispatcher.Idle() || now >= *stop_at)) return;
    }
  }

  Micros WaitFor(const Dispatcher& dispatcher, MonoTime next_tick) const {
    Micros wait = std::clamp<Micros>(next_tick - options_.clock->Now(), Micros{0}, Micros{kIdleWait});
    if (const auto due = dispatcher.NextDue()) wait = std::clamp<Micros>(*due - options_.clock->WallNow(), Micros{0}, wait);
    return wait;
  }

  // Returns whether a socket may have more.
  bool Receive(Dispatcher& dispatcher, MonoTime now, WallTime wall) {
    bool more = false;
    for (std::size_t i = 0; i < back_.size() + front_.size(); ++i) {
      const bool worker = i < back_.size();
      wire::ServerSocket& socket = worker ? *back_[i] : *front_[i - back_.size()];
      int n = 0;
      for (; n < kReceivePerRound; ++n) {
        auto received = socket.Receive();
        if (!received) break;
        auto message = wire::Decode(received->frame);
        const wire::PeerId peer = Tagged(i, received->peer);
        if (message) wire::RecordMessage(who_, *message);
        if (!message) {
          LogWarn("a {} sent a frame that is no message: {}", worker ? "worker" : "client", message.error().message);
          if (!worker)
            Send(peer, wire::Problem{.request = 0, .code = "invalid_argument", .message = message.error().message}, dispatcher);
        } else if (worker) {
          dispatcher.Handle(event::FromWorker{.peer = peer, .message = std::move(*message)}, now, wall);
        } else {
          dispatcher.Handle(event::FromClient{.peer = peer, .message = std::move(*message)}, now, wall);
        }
      }
      more = more || n == kReceivePerRound;
    }
    return more;
  }

  // A peer's routing id is unique per socket only: the socket's index goes in front.
  static wire::PeerId Tagged(std::size_t socket, const wire::PeerId& peer) {
    wire::PeerId tagged(1, static_cast<char>(socket));
    return tagged += peer;
  }

  wire::ServerSocket& SocketOf(const wire::PeerId& peer, bool& worker) {
    const auto i = static_cast<std::size_t>(static_cast<unsigned char>(peer.front()));
    worker = i < back_.size();
    return worker ? *back_[i] : *front_[i - back_.size()];
  }

  void Send(const wire::PeerId& peer, const wire::Message& message, Dispatcher& dispatcher) {
    wire::RecordMessage(who_, message);
    std::string frame = wire::Encode(message);
    if (const auto it = unsent_.find(peer); it != unsent_.end()) {
      if (it->second.bytes + frame.size() <= kUnsentBytesMax) {
        it->second.Add(std::move(frame));
      } else {
        Gone(peer, dispatcher);
      }
      return;
    }
    bool worker = false;
    auto sent = SocketOf(peer, worker).Send(peer.substr(1), frame);
    if (sent) return;
    if (sent.error().code == ErrorCode::kLimit) {
      unsent_[peer].Add(std::move(frame));
    } else {
      Gone(peer, dispatcher);
    }
  }

  void Gone(const wire::PeerId& peer, Dispatcher& dispatcher) {
    unsent_.erase(peer);
    bool worker = false;
    SocketOf(peer, worker);
    const MonoTime now = options_.clock->Now();
    const WallTime wall = options_.clock->WallNow();
    if (worker) {
      dispatcher.Handle(event::WorkerPeerGone{.peer = peer}, now, wall);
    } else {
      dispatcher.Handle(event::ClientPeerGone{.peer = peer}, now, wall);
    }
  }

  void RetryUnsent() {
    for (auto it = unsent_.begin(); it != unsent_.end();) {
      bool worker = false;
      wire::ServerSocket& socket = SocketOf(it->first, worker);
      auto& frames = it->second.frames;
      std::size_t sent = 0;
      bool gone = false;
      for (; sent < frames.size(); ++sent) {
        const std::size_t size = frames[sent].size() + kUnsentFrameBytes;
        auto result = socket.Send(it->first.substr(1), frames[sent]);
        if (result) {
          it->second.bytes -= size;
          continue;
        }
        gone = result.error().code != ErrorCode::kLimit;
        break;
      }
      frames.erase(frames.begin(), frames.begin() + static_cast<std::ptrdiff_t>(sent));
      it = gone || frames.empty() ? unsent_.erase(it) : std::next(it);
    }
  }

  void Issue(Command& command, Dispatcher& dispatcher) {
    if (auto* ledger = std::get_if<LedgerCommand>(&command)) {
      ledger_box_.Put(std::move(*ledger));
    } else if (auto* execute = std::get_if<command::Execute>(&command)) {
      queue_box_.Put(std::move(*execute));
    } else if (auto* to_worker = std::get_if<command::SendWorker>(&command)) {
      Send(to_worker->peer, to_worker->message, dispatcher);
    } else if (auto* to_client = std::get_if<command::SendClient>(&command)) {
      Send(to_client->peer, to_client->message, dispatcher);
    }
  }

  // ---- the other threads -------------------------------------------------------------------------------------------------
  void QueueThread(std::promise<Result<void>> ready) {
    auto queue = options_.make_queue();
    if (!queue) {
      ready.set_value(std::unexpected(std::move(queue.error())));
      return;
    }
    ready.set_value({});
    MonoTime next_memory = options_.clock->Now();
    while (true) {
      const bool last = queue_box_.Closed();
      auto taken = queue_box_.TakeAll(Micros{kOwnershipRenewInterval});
      // Nobody waits for ended jobs to leave the flight, but whatever comes while they do would wait for them.
      if (!taken.empty() && std::ranges::all_of(taken, IsFinish))
        for (auto& more : queue_box_.TakeAll(kFinishWait)) taken.push_back(std::move(more));
      for (std::size_t begin = 0; begin < taken.size(); begin += kQueueOpsMax) {
        const std::size_t end = std::min(begin + kQueueOpsMax, taken.size());
        std::vector<QueueOp> ops;
        ops.reserve(end - begin);
        for (std::size_t i = begin; i < end; ++i) ops.push_back(std::move(taken[i].op));
        auto results = (*queue)->Execute(ops);
        event::QueueReplies replies;
        replies.replies.reserve(results.size());
        // That ended jobs are out of flight is news to nobody but a shard that is handed over, which can wait for a tick.
        bool news = stop_;
        for (std::size_t i = 0; i < results.size(); ++i) {
          news = news || !results[i] || !std::holds_alternative<queue_op::Finish>(ops[i]);
          replies.Add(taken[begin + i].id, ops[i], std::move(results[i]));
        }
        Post(std::move(replies), news);
      }
      if (last && taken.empty()) return;
      if (const MonoTime now = options_.clock->Now(); now >= next_memory && !stop_) {
        next_memory = now + kMemoryPollInterval;
        // Not known: what was known before stands.
        if (auto memory = (*queue)->Memory()) Post(event::QueueMemoryRead{.memory = *memory});
      }
    }
  }

  void InboxThread(std::promise<Result<void>> ready) {
    if (!options_.make_inbox) {
      ready.set_value({});
      return;
    }
    auto inbox = options_.make_inbox();
    if (!inbox) {
      ready.set_value(std::unexpected(std::move(inbox.error())));
      return;
    }
    ready.set_value({});
    while (!stop_) {
      auto rung = (*inbox)->Wait(options_.shards, kInboxWait);
      if (!rung) {
        LogWarn("inbox: {}", rung.error().message);
        stop_bell_.TakeAll(kInboxWait);  // the outbox is polled meanwhile
        continue;
      }
      for (const ShardId shard : *rung) Post(event::Rung{.shard = shard});
    }
  }

  // Only wakes the ledger thread: without it the rows are found by its poll, so a failure here loses nothing.
  void EnqueueThread() {
    std::unique_ptr<EnqueueWatch> watch;
    bool complained = false;
    while (!stop_) {
      auto waited = [&]() -> Result<bool> {
        if (!watch) {
          MILLRACE_TRY_ASSIGN(watch, options_.make_enqueue_watch());
          return true;  // rows that came before
        }
        return watch->Wait(kInboxWait);
      }();
      if (!waited) {
        if (!std::exchange(complained, true)) LogWarn("enqueue: {}: looking every 2 s meanwhile", waited.error().message);
        watch.reset();
        stop_bell_.TakeAll(kEnqueuePollInterval);
        continue;
      }
      complained = false;
      if (*waited) ledger_box_.Put(command::TakeEnqueued{});
    }
  }

  void LedgerThread(std::promise<Result<void>> ready) {
    auto ledger = options_.make_ledger();
    if (!ledger) {
      ready.set_value(std::unexpected(std::move(ledger.error())));
      return;
    }
    ready.set_value({});
    LedgerPump pump({.owner = options_.owner,
                     .owner_name = options_.name,
                     .clients = front_names_.empty() ? std::string() : front_names_.front(),
                     .shards = options_.shards,
                     .shard_count = options_.shard_count,
                     .sole = options_.sole},
                    **ledger, *options_.clock);
    std::vector<Event> events;
    MonoTime next = options_.clock->Now();
    while (true) {
      const bool last = ledger_box_.Closed();
      const Micros wait = std::max(Micros{0}, next - options_.clock->Now());
      for (LedgerCommand& command : ledger_box_.TakeAll(last ? Micros{0} : wait)) pump.Post(std::move(command));
      events.clear();
      next = pump.Step(events);
      for (Event& event : events) Post(std::move(event));
      if (last) break;
    }
    pump.Release();
    written_bell_.Close();
  }

  void AuditThread(std::promise<Result<void>> ready) {
    auto ledger = options_.make_ledger();
    if (!ledger) {
      ready.set_value(std::unexpected(std::move(ledger.error())));
      return;
    }
    ready.set_value({});
    AuditPump pump({.checkpoint = options_.checkpoint, .checkpointed = options_.checkpointed}, **ledger, *options_.clock);
    while (!written_bell_.Closed()) {
      const MonoTime next = pump.Step();
      written_bell_.TakeAll(std::max(Micros{0}, next - options_.clock->Now()));
    }
    pump.Finish(kAuditFinishBudget);
  }

  BrokerOptions options_;
  const std::string who_ = "broker:" + options_.owner.ToString();  // in the history
  Mailbox<Event> events_;
  Mailbox<LedgerCommand> ledger_box_;
  Mailbox<command::Execute> queue_box_;
  std::vector<std::unique_ptr<wire::ServerSocket>> front_, back_;  // loop thread
  std::map<wire::PeerId, Unsent> unsent_;                          // loop thread
  std::mutex wake_mutex_;
  wire::Transport* transport_ = nullptr;  // guarded by wake_mutex_; null when the loop has ended
  Mailbox<bool> stop_bell_{1};            // closed at RequestStop
  Mailbox<bool> written_bell_{1};         // closed when the ledger thread has written its last
  std::atomic<bool> stop_{false}, aborted_{false}, wake_pending_{false};
  std::vector<std::thread> threads_;
};

Broker::Broker(BrokerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Broker::~Broker() {
  RequestStop();
  Join();
}
Result<void> Broker::Start() { return impl_->Start(); }
const std::vector<std::string>& Broker::front_endpoints() const { return impl_->front_names_; }
const std::vector<std::string>& Broker::back_endpoints() const { return impl_->back_names_; }
void Broker::RequestStop() { impl_->RequestStop(); }
void Broker::Join() { impl_->Join(); }

}  // namespace millrace
