#include "client/cli/engine.h"

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <ctime>
#include <filesystem>
#include <mutex>
#include <thread>

#include "broker/broker.h"
#include "client/cli/retention.h"
#include "common/base/log.h"
#include "common/crypto/checkpoint.h"
#include "common/queue/redis_queue.h"
#include "common/queue/sqlite_queue.h"
#include "common/wire/zmtp_transport.h"
#include "scheduler/scheduler.h"
#include "worker/worker.h"

namespace millrace::cli {
namespace {

constexpr Millis kStartTimeout{15'000};
constexpr std::size_t kStageThreadsMax = 4;
constexpr std::string_view kWorkersInside = "inproc://workers";

RedisQueueOptions RedisOptions(const Context& context) {
  const QueueConfig& queue = context.config().queue;
  RedisQueueOptions options;
  const bool login = !queue.password.empty();
  options.endpoint = fmt::format("redis://{}{}:{}/{}", login ? fmt::format("{}:{}@", queue.user, queue.password.Reveal()) : "",
                                 queue.host, queue.port, queue.database);
  options.prefix = queue.prefix;
  options.clock = &context.clock();
  return options;
}

bool UsesRedis(const Context& context) { return context.config().queue.kind == QueueConfig::Kind::kRedis; }

Result<std::unique_ptr<JobQueue>> OpenQueue(const Context& context) {
  if (UsesRedis(context)) {
    auto queue = RedisQueue::Open(RedisOptions(context), context.clock().Now() + kStartTimeout);
    if (!queue) return Prefixed(std::move(queue.error()), "queue");
    return std::unique_ptr<JobQueue>(std::move(*queue));
  }
  auto queue = OpenSqliteQueue({.path = context.config().queue.path});
  if (!queue) return Prefixed(std::move(queue.error()), "queue");
  return std::move(*queue);
}

worker::WorkerOptions MakeWorkerOptions(Context& context, std::vector<std::string> brokers) {
  const WorkerConfig& config = context.config().worker;
  worker::WorkerOptions options;
  options.name = config.name;
  options.id = context.ids().Next<WorkerId>();
  options.brokers = std::move(brokers);
  options.concurrency = config.concurrency;
  options.queues = config.queues;
  options.roots = config.roots;
  options.lake = context.config().lake;
  options.connections = context.Connections();
  options.stage_program = StageProgram();
  options.warm_stages = config.stage_processes;
  options.memory_bytes_max = config.memory_max;
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  options.threads_per_stage = static_cast<int>(std::min(cores, kStageThreadsMax));
  options.sandbox = config.sandbox;
  options.drain_timeout = config.drain_timeout;
  return options;
}

// The inbox of this process, for one of its users.
class SharedInbox final : public Inbox {
 public:
  explicit SharedInbox(std::shared_ptr<LocalInbox> inbox) : inbox_(std::move(inbox)) {}
  Result<void> Ring(ShardId shard) override { return inbox_->Ring(shard); }
  Result<std::vector<ShardId>> Wait(std::span<const ShardId> shards, Millis timeout) override {
    return inbox_->Wait(shards, timeout);
  }

 private:
  std::shared_ptr<LocalInbox> inbox_;
};

// Checkpoints are written by the broker's audit thread; a failure is said once, not every ten seconds.
CheckpointHook MakeCheckpointHook(std::shared_ptr<CheckpointWriter> writer, const Clock& clock) {
  return [writer = std::move(writer), &clock, complained = false](WallTime now, const AuditNews& news) mutable {
    auto wrote = writer->MaybeWrite(clock.Now(), now, news.heads, news.records, news.complete);
    if (wrote) wrote = writer->Flush(clock.Now(), now, news.heads, news.complete);
    if (!wrote && !complained) LogError("audit checkpoint: {}", wrote.error().message);
    complained = !wrote;
  };
}

}  // namespace

struct Engine::Parts {
  explicit Parts(Context& c) : context(c) {}

  Context& context;
  EngineParts which;
  std::shared_ptr<wire::LocalNames> names = wire::MakeLocalNames();
  std::string client_endpoint;
  std::shared_ptr<LocalInbox> local_inbox = std::make_shared<LocalInbox>();
  std::unique_ptr<Inbox> scheduler_inbox;
  std::unique_ptr<Broker> broker;
  std::unique_ptr<worker::Worker> worker;
  std::unique_ptr<Ledger> scheduler_ledger;
  std::unique_ptr<scheduler::Scheduler> scheduler;
  std::thread worker_thread, scheduler_thread, retention_thread;
  std::mutex retention_mutex;
  std::condition_variable retention_stop;
  bool retention_stopping = false;
  std::optional<SigningKey> held_retention;  // it prunes nothing before Release
  std::atomic<bool> worker_ended{false}, scheduler_ended{false};
  Result<void> worker_result;
  int stop_requests = 0;

  // One per user: each waits or rings on a connection of its own.
  Result<std::unique_ptr<Inbox>> OpenInbox() {
    if (UsesRedis(context)) return OpenRedisInbox(RedisOptions(context));
    return std::unique_ptr<Inbox>(std::make_unique<SharedInbox>(local_inbox));
  }

  Result<void> StartBroker(const std::vector<std::string>& clients, const std::vector<std::string>& workers);
  Result<void> MakeLake() const;
  Result<void> StartWorker(std::vector<std::string> brokers);
  Result<void> StartScheduler();
  void StartRetention(SigningKey key);
  void Retain(const SigningKey& key);
  void StopRetention();
  void StopBroker();
  void WarnOfNamesake(Ledger& ledger, OwnerId owner) const;
};

// Work is told apart by the owner's id, which every start makes anew; people have only the name.
void Engine::Parts::WarnOfNamesake(Ledger& ledger, OwnerId owner) const {
  const std::string& name = context.config().broker.name;
  const auto living = ledger.LivingBrokers(context.Deadline());
  if (!living) return;
  for (const auto& [id, other] : *living)
    if (id != owner && other.name == name)
      return LogWarn(
          "another broker is called '{}' too (it lives, or ended less than 5 s ago): status, logs and records cannot tell them "
          "apart; give each its own name (--name, broker.name)",
          name);
}

Result<void> Engine::Parts::StartBroker(const std::vector<std::string>& clients, const std::vector<std::string>& workers) {
  const AuditConfig& audit = context.config().audit;
  auto loaded = SigningKey::LoadOrCreate(audit.key_file);
  if (!loaded) {  // nothing has been tried yet that could have failed
    const bool unusable = loaded.error().code == ErrorCode::kCorrupt;
    return Fail(ErrorCode::kConflict, "{}{}", loaded.error().message,
                unusable ? "; put the key back, or set audit.key_file to another path for a new one" : "");
  }
  SigningKey key = std::move(*loaded);
  const SigningKey retention_key = key;
  MILLRACE_TRY_ASSIGN(CheckpointWriter checkpoints,
                      CheckpointWriter::Open(audit.checkpoint_dir, std::move(key), context.ids().Next<AuditWriterId>()));
  BrokerOptions options;
  options.name = context.config().broker.name;
  options.owner = context.ids().Next<OwnerId>();
  options.front_endpoints = clients;
  options.back_endpoints = workers;
  options.shard_count = context.config().broker.shards;
  options.sole = context.embedded();
  options.clock = &context.clock();
  options.random = &context.random();
  options.checkpointed = checkpoints.written();
  options.checkpoint = MakeCheckpointHook(std::make_shared<CheckpointWriter>(std::move(checkpoints)), context.clock());
  options.make_ledger = [this, owner = options.owner] {
    auto ledger = context.OpenLedger(Context::Create::kYes, "broker " + context.config().broker.name);
    if (ledger && !context.embedded()) WarnOfNamesake(**ledger, owner);
    return ledger;
  };
  options.make_queue = [this] { return OpenQueue(context); };
  options.make_inbox = [this]() -> Result<std::unique_ptr<Inbox>> { return OpenInbox(); };
  if (!context.embedded())
    options.make_enqueue_watch = [this] {
      return OpenPostgresEnqueueWatch(context.config().ledger.dsn.Reveal(), context.clock(), context.Deadline());
    };
  options.make_transport = [this] { return wire::MakeZmtpTransport(names); };
  broker = std::make_unique<Broker>(std::move(options));
  MILLRACE_TRY(broker->Start());
  if (which.held)
    held_retention = retention_key;
  else
    StartRetention(retention_key);
  return {};
}

// With a connection of its own: what it does takes longer than the broker's ledger thread may be away.
void Engine::Parts::StartRetention(SigningKey key) {
  const LedgerConfig& config = context.config().ledger;
  if (config.retention == Millis{0} && config.retention_bytes == 0) return;
  retention_thread = std::thread([this, key = std::move(key)] {
    std::unique_lock lock(retention_mutex);
    while (!retention_stopping) {
      lock.unlock();
      Retain(key);
      lock.lock();
      retention_stop.wait_for(lock, kRetentionInterval, [this] { return retention_stopping; });
    }
  });
}

void Engine::Parts::Retain(const SigningKey& key) {
  const auto done = [&]() -> Result<PruneTotal> {
    const LedgerConfig& config = context.config().ledger;
    const std::string actor = "broker " + context.config().broker.name;
    MILLRACE_TRY_ASSIGN(const auto ledger, context.OpenLedger(Context::Create::kNo, actor));
    const RetentionPolicy policy{.age = config.retention, .bytes = config.retention_bytes};
    MILLRACE_TRY_ASSIGN(const auto weeks, WeeksFor(policy, *ledger, context.clock()));
    MILLRACE_TRY_ASSIGN(const WallTime now, ledger->Now(context.Deadline()));
    PruneRequest request{.before = PruneBefore(policy, weeks, now), .actor = actor, .sign = [&](std::string_view bytes) {
                           const Signature s = key.Sign(bytes);
                           return std::string(s.begin(), s.end());
                         }};
    return PruneHistory(*ledger, std::move(request), context.config().lake, context.clock(), [this] {
      const std::scoped_lock lock(retention_mutex);
      return retention_stopping;
    });
  }();
  if (!done) {
    LogWarn("retention: {}: trying again in an hour", done.error().message);
  } else if (done->rows > 0) {
    LogInfo("retention: {} rows of before {} are gone{}", done->rows, ToRfc3339(done->before),
            done->held_by.empty() ? "" : "; not further: " + done->held_by);
  }
}

void Engine::Parts::StopRetention() {
  {
    const std::scoped_lock lock(retention_mutex);
    retention_stopping = true;
  }
  retention_stop.notify_all();
  if (retention_thread.joinable()) retention_thread.join();
}

void Engine::Parts::StopBroker() {
  if (!broker) return;
  broker->RequestStop();
  // Its inbox thread looks for the stop only after a wait: wake it.
  for (std::uint16_t i = 0; i < context.config().broker.shards; ++i) (void)local_inbox->Ring(ShardId{i});
}

Result<void> Engine::Parts::MakeLake() const {
  std::error_code ec;
  std::filesystem::create_directories(context.config().lake, ec);
  if (ec) return Fail(ErrorCode::kInvalidArgument, "lake '{}': cannot create it: {}", context.config().lake, ec.message());
  return {};
}

Result<void> Engine::Parts::StartWorker(std::vector<std::string> brokers) {
  MILLRACE_TRY_ASSIGN(auto transport, wire::MakeZmtpTransport(names));
  auto options = MakeWorkerOptions(context, std::move(brokers));
  options.held = which.held;
  if (which.broker) options.on_goodbye = [this] { StopBroker(); };
  worker = std::make_unique<worker::Worker>(std::move(options), context.clock(), std::move(transport));
  worker_thread = std::thread([this] {
    worker_result = worker->Run();
    worker_ended = true;
  });
  return {};
}

Result<void> Engine::Parts::StartScheduler() {
  const SchedulerConfig& config = context.config().scheduler;
  MILLRACE_TRY_ASSIGN(scheduler_ledger, context.OpenLedger(Context::Create::kYes, "scheduler " + config.name));
  MILLRACE_TRY_ASSIGN(scheduler_inbox, OpenInbox());
  scheduler::SchedulerOptions options{.name = config.name,
                                      .id = context.ids().Next<OwnerId>(),
                                      .lead_ttl = config.lead_ttl,
                                      .shard_count = context.config().broker.shards};
  if (!context.embedded())  // SQLite has one writer at a time
    options.open_ledger = [this, name = config.name] { return context.OpenLedger(Context::Create::kNo, "scheduler " + name); };
  scheduler =
      std::make_unique<scheduler::Scheduler>(options, *scheduler_ledger, *scheduler_inbox, context.clock(), context.ids());
  scheduler_thread = std::thread([this] {
    scheduler->Run();
    scheduler_ended = true;
  });
  return {};
}

Engine::Engine(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Result<std::unique_ptr<Engine>> Engine::Start(Context& context, EngineParts which) {
  MILLRACE_TRY_ASSIGN(auto engine, Prepare(context, which));
  MILLRACE_TRY(engine->Open());
  return engine;
}

Result<std::unique_ptr<Engine>> Engine::Prepare(Context& context, EngineParts which) {
  auto engine = std::unique_ptr<Engine>(new Engine(std::make_unique<Parts>(context)));
  engine->parts_->which = which;
  if (!UsesRedis(context) && which.scheduler && !which.broker)
    return Fail(ErrorCode::kInvalidArgument, "a scheduler of its own needs queue.redis; embedded, use 'millrace up'");
  if (which.broker && which.worker) MILLRACE_TRY(engine->parts_->StartWorker({std::string(kWorkersInside)}));
  return engine;
}

namespace {

// An endpoint that cannot be bound is known by the setting it comes from.
Error WithSetting(Error error, const BrokerConfig& broker) {
  for (const auto& [key, endpoint] :
       {std::pair{"broker.listen_clients", &broker.listen_clients}, std::pair{"broker.listen_workers", &broker.listen_workers}})
    if (error.message.starts_with(fmt::format("bind {}: ", *endpoint)))
      error.message = fmt::format("{}: {}; give it another port, or end what listens there", key, error.message);
  return error;
}

}  // namespace

Result<void> Engine::Open() {
  Parts& parts = *parts_;
  const EngineParts& which = parts.which;
  const BrokerConfig& broker = parts.context.config().broker;
  const bool together = which.broker && which.worker;
  parts.client_endpoint = together ? "inproc://clients" : broker.listen_clients;
  if (which.worker && !which.held) MILLRACE_TRY(parts.MakeLake());
  if (which.broker) {
    std::vector<std::string> clients{broker.listen_clients}, workers{broker.listen_workers};
    if (together) {  // nobody else is meant to join: no port is opened, only (for `up`) a socket inside the home
      clients = {parts.client_endpoint};
      workers = {std::string(kWorkersInside)};
      if (which.scheduler) clients.push_back(parts.context.ClientEndpoint());
    }
    if (auto started = parts.StartBroker(clients, workers); !started)
      return std::unexpected(WithSetting(std::move(started.error()), broker));
  }
  if (which.worker && !together) MILLRACE_TRY(parts.StartWorker(parts.context.config().worker.brokers));
  if (which.scheduler) MILLRACE_TRY(parts.StartScheduler());
  return {};
}

std::future<Result<std::string>> Engine::Ask(std::string request) { return parts_->worker->Ask(std::move(request)); }

Result<void> Engine::Release(std::uint64_t stages) {
  MILLRACE_TRY(parts_->MakeLake());
  if (parts_->held_retention) parts_->StartRetention(*std::exchange(parts_->held_retention, std::nullopt));
  parts_->worker->Release(stages);
  return {};
}

Engine::~Engine() {
  while (parts_->stop_requests < 2) RequestStop();
  (void)Join();
}

std::string Engine::client_endpoint() const { return parts_->client_endpoint; }
Result<std::unique_ptr<wire::Transport>> Engine::MakeTransport() const { return wire::MakeZmtpTransport(parts_->names); }

void Engine::RequestStop() {
  ++parts_->stop_requests;
  if (parts_->scheduler) parts_->scheduler->RequestStop();
  if (parts_->worker) {
    parts_->worker->RequestDrain();  // the broker goes on until the worker's last reports are answered
  } else if (parts_->broker) {
    parts_->broker->RequestStop();
  }
}

bool Engine::Ended() const {
  // One that ended by itself has failed: the others are of no use without it.
  if (parts_->stop_requests == 0 && (parts_->worker_ended || parts_->scheduler_ended)) return true;
  return (!parts_->worker || parts_->worker_ended) && (!parts_->scheduler || parts_->scheduler_ended) &&
         (!parts_->broker || parts_->worker || parts_->stop_requests > 0);
}

Result<void> Engine::Join() {
  if (parts_->scheduler_thread.joinable()) parts_->scheduler_thread.join();
  if (parts_->worker_thread.joinable()) parts_->worker_thread.join();
  if (parts_->broker) {
    parts_->StopBroker();
    parts_->broker->Join();
  }
  parts_->StopRetention();  // last: it ends the step that it is in
  return parts_->worker_result;
}

void BlockStopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

namespace {

bool TakeStopSignal(Millis timeout) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  const timespec wait{.tv_sec = timeout.count() / 1000, .tv_nsec = timeout.count() % 1000 * 1'000'000};
  return sigtimedwait(&set, nullptr, &wait) > 0;
}

}  // namespace

bool StopSignalPending() { return TakeStopSignal(Millis{0}); }

bool StopSignalWaits() {
  sigset_t waiting;
  return sigpending(&waiting) == 0 && (sigismember(&waiting, SIGTERM) == 1 || sigismember(&waiting, SIGINT) == 1);
}

Result<void> ServeUntilSignal(Engine& engine) {
  int signals = 0;
  while (!engine.Ended()) {
    if (!TakeStopSignal(Millis{200})) continue;
    ++signals;
    LogInfo("{}", signals == 1 ? "stopping: finishing what runs (a second signal hands it back at once)" : "stopping now");
    if (signals <= 2) engine.RequestStop();
  }
  if (signals == 0) {  // a part of it failed
    engine.RequestStop();
    engine.RequestStop();
  }
  return engine.Join();
}

}  // namespace millrace::cli
