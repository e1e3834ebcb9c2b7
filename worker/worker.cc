#include "worker/worker.h"

#include <signal.h>
#include <time.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

#include "common/base/log.h"
#include "common/model/stage_task.h"
#include "common/wire/codec.h"
#include "common/wire/history.h"
#include "worker/executor.h"
#include "worker/poller.h"
#include "worker/process_pool.h"
#include "worker/scratch.h"
#include "worker/session.h"
#include "worker/stage_question.h"

namespace millrace::worker {
namespace {

constexpr int kReceiveBurst = 256;  // messages of one broker in one turn of the loop
constexpr auto kWaitMax = Millis{1000};

// A child that dies while its order is written must not take the worker with it. Blocked for this thread only: what the rest
// of the process does with SIGPIPE is not a library's to decide.
class SigpipeBlocked {
 public:
  SigpipeBlocked() {
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~SigpipeBlocked() {
    const timespec none{};
    while (::sigtimedwait(&set_, nullptr, &none) > 0) {
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SigpipeBlocked(const SigpipeBlocked&) = delete;
  SigpipeBlocked& operator=(const SigpipeBlocked&) = delete;

 private:
  sigset_t set_{}, before_{};
};

Result<void> Check(const WorkerOptions& o) {
  if (o.name.empty() || o.name.size() > kNameBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "worker name: {} bytes, expected 1 to {}", o.name.size(), kNameBytesMax);
  if (o.id.IsNil()) return Fail(ErrorCode::kInvalidArgument, "worker id: is nil");
  if (o.brokers.empty()) return Fail(ErrorCode::kInvalidArgument, "brokers: a worker needs at least one endpoint");
  if (o.concurrency == 0 || o.concurrency > wire::kHeldMax)
    return Fail(ErrorCode::kInvalidArgument, "concurrency: {} is not in [1, {}]", o.concurrency, wire::kHeldMax);
  if (std::ranges::find(o.kinds, kJobKindStage) != o.kinds.end() && (o.stage_program.empty() || o.lake.empty()))
    return Fail(ErrorCode::kInvalidArgument, "a worker for jobs of kind 'stage' needs stage_program and lake");
  return {};
}

}  // namespace

class Worker::Loop {
 public:
  Loop(Worker& worker, std::unique_ptr<Poller> poller, std::string scratch_root)
      : worker_(worker),
        options_(worker.options_),
        clock_(worker.clock_),
        poller_(std::move(poller)),
        pool_(*poller_, clock_, PoolOptions(options_)),
        executor_(MakeExecutorOptions(options_, std::move(scratch_root)), clock_, *poller_, pool_),
        session_(SessionOptions(options_)) {}

  // The nursery takes longer to come than all else.
  void WarmUp() { pool_.Tick(clock_.Now()); }

  Result<void> Connect() {
    for (const std::string& endpoint : options_.brokers) {
      auto socket = worker_.transport_->Connect(endpoint);
      if (!socket) return Prefixed(std::move(socket.error()), "broker");
      sockets_.push_back(std::move(*socket));
    }
    return {};
  }

  void Run() {
    for (Turn(); !Done(); Turn()) worker_.transport_->Wait(WaitTime(), poller_->fd());
    session_.SayGoodbye();
    Execute(clock_.Now());
    worker_.transport_->Flush();
    if (options_.on_goodbye) options_.on_goodbye();
    for (; !executor_.Idle(); executor_.Tick()) {  // what is left says nothing to anybody
      worker_.transport_->Wait(WaitFor(executor_.NextTick()), poller_->fd());
      for (const auto& socket : sockets_)
        while (socket->Receive()) {
        }
      poller_->Dispatch();
    }
  }

 private:
  static ProcessPool::Options PoolOptions(const WorkerOptions& o) {
    const bool stages = std::ranges::find(o.kinds, kJobKindStage) != o.kinds.end();
    ProcessPool::Options options;
    options.program = o.stage_program;
    options.env = InheritedEnv();
    options.warm = stages ? o.warm_stages : 0;
    options.nice = o.nice;
    return options;
  }
  static Executor::Options MakeExecutorOptions(const WorkerOptions& o, std::string scratch_root) {
    Executor::Options options;
    options.worker = o.name;
    options.lake = o.lake;
    options.scratch_root = std::move(scratch_root);
    options.connections = o.connections;
    options.memory_bytes_max = o.memory_bytes_max;
    options.threads_per_stage = o.threads_per_stage;
    options.sandbox = o.sandbox;
    options.nice = o.nice;
    return options;
  }
  static Session::Options SessionOptions(const WorkerOptions& o) {
    Session::Options options;
    options.worker = o.id;
    options.name = o.name;
    options.queues = o.queues;
    options.kinds = o.kinds;
    options.roots = o.roots;
    options.concurrency = o.concurrency;
    options.brokers = o.brokers.size();
    options.heartbeat = o.heartbeat;
    options.lease_ttl = std::max<Millis>(kLeaseTtl, o.heartbeat * 3);
    options.held = o.held;
    return options;
  }

  void Turn() {
    poller_->Dispatch();
    Receive();
    const MonoTime now = clock_.Now();
    CheckDrain(now);
    CheckRelease();
    TendQuestions();
    if (session_.BeatDue(now)) executor_.ReadProgress();
    PassProgressOn();
    session_.OnTick(now);
    Execute(now);
    executor_.Tick();
    PassProgressOn();
    if (Collect(now)) Execute(now);
    worker_.transport_->Flush();
    pool_.Tick(now);  // last: a replacement is not on anybody's critical path
    worker_.running_ = executor_.running();
    worker_.live_brokers_ = session_.live_brokers();
  }

  void PassProgressOn() {
    for (const auto& p : executor_.TakeProgress()) session_.OnProgress(p.job, p.rows, p.bytes);
  }

  void Receive() {
    for (std::size_t i = 0; i < sockets_.size(); ++i) {
      for (int n = 0; n < kReceiveBurst; ++n) {
        const auto frame = sockets_[i]->Receive();
        if (!frame) break;
        const auto message = wire::Decode(*frame);
        if (message) {
          wire::RecordMessage(who_, *message);
          session_.OnMessage(clock_.Now(), i, *message);
        } else {
          LogWarn("broker {}: {}", options_.brokers[i], message.error().message);
        }
      }
    }
  }

  // One line per attempt of a stage; other jobs may be thousands a second.
  void LogStart(const wire::Grant::Job& job) {
    if (!LogEnabled(LogLevel::kInfo)) return;
    std::string label = DescribeJob(job.kind, job.payload);
    if (label.empty()) return;
    if (job.delivery > 1) label += fmt::format(", attempt {}", job.delivery);
    labels_.insert_or_assign(job.id, std::move(label));
  }

  void LogEnd(const AttemptReport& report) {
    const auto label = labels_.extract(report.job);
    const std::string_view colon = report.error.empty() ? "" : ": ";
    if (label.empty()) {
      LogDebug("job {}: {}{}{}", report.job.ToString(), Name(report.end), colon, report.error);
      return;
    }
    const auto ms = std::chrono::duration_cast<Millis>(report.finished_at - report.started_at).count();
    LogInfo("{}: {} in {}.{:03} s{}{}", label.mapped(), Name(report.end), ms / 1000, ms % 1000, colon, report.error);
  }

  // Ends of attempts go back into the session; true if there were any.
  bool Collect(MonoTime now) {
    auto ended = executor_.TakeEnded();
    for (AttemptReport& report : ended) {
      LogEnd(report);
      session_.OnEnded(now, std::move(report));
    }
    return !ended.empty();
  }

  // A start that fails at once frees its slot for the next one, hence the loop.
  void Execute(MonoTime now) {
    do {
      for (Session::Command& command : session_.TakeCommands(now)) {
        if (auto* send = std::get_if<Session::Send>(&command)) {
          wire::RecordMessage(who_, send->message);
          // What cannot be sent now is lost, as on any network: hello, beat and ended are all repeated.
          const auto sent = sockets_[send->broker]->Send(wire::Encode(send->message));
          if (!sent) session_.OnNotSent(now, send->broker);
          if (!sent && sent.error().code != ErrorCode::kUnavailable)
            LogWarn("broker {}: {}", options_.brokers[send->broker], sent.error().message);
        } else if (const auto* start = std::get_if<Session::Start>(&command)) {
          LogStart(start->job);
          executor_.Start(start->job);
        } else if (const auto* kill = std::get_if<Session::Kill>(&command)) {
          const auto label = labels_.find(kill->job);
          LogInfo("{}: stopping it: {}", label == labels_.end() ? "job " + kill->job.ToString() : label->second,
                  worker::Name(kill->reason));
          executor_.Kill(kill->job, kill->token, kill->reason);
        }
      }
    } while (Collect(now));
  }

  void CheckDrain(MonoTime now) {
    const int requests = worker_.drain_requests_.load();
    if (requests == 0 || handed_back_) return;
    if (!drain_until_) {
      LogInfo("draining: {} attempts run, at most {} ms", executor_.running(), options_.drain_timeout.count());
      drain_until_ = now + options_.drain_timeout;
      session_.Drain(now);
      pool_.Close();  // what runs has its process: it is time for the others to go
    }
    if (requests > 1 || now >= *drain_until_) {
      handed_back_ = true;
      session_.HandBackAll(now);
    }
  }

  void CheckRelease() {
    if (released_ || !worker_.released_.load()) return;
    released_ = true;
    pool_.Expect(worker_.expected_.load());
    session_.Release();
  }

  void TendQuestions() {
    for (Asked& asked : worker_.TakeAsked()) {
      if (auto process = pool_.Take()) {
        questions_.push_back(std::make_unique<StageQuestion>(std::move(*process), asked.request, std::move(asked.answer)));
      } else {
        asked.answer.set_value(Fail(ErrorCode::kUnavailable, "{}", process.error().message));
      }
    }
    std::erase_if(questions_, [](const auto& question) { return question->Tick(); });
  }

  bool Done() {
    if (!drain_until_ || !session_.Idle() || executor_.running() > 0) return false;
    if (session_.Settled()) return true;
    const MonoTime now = clock_.Now();
    if (!settle_until_) settle_until_ = now + options_.settle_timeout;
    if (now < *settle_until_) return false;
    LogWarn("leaving with reports that no broker has answered; their jobs will be started again");
    return true;
  }

  Millis WaitTime() const {
    MonoTime next = std::min({session_.NextTick(), executor_.NextTick(), pool_.NextTick()});
    if (drain_until_ && !handed_back_) next = std::min(next, *drain_until_);
    if (settle_until_) next = std::min(next, *settle_until_);
    return WaitFor(next);
  }
  Millis WaitFor(MonoTime next) const {
    const MonoTime now = clock_.Now();
    if (next <= now) return Millis{0};
    return std::min(kWaitMax, std::chrono::ceil<Millis>(next - now));
  }

  Worker& worker_;
  const WorkerOptions& options_;
  const std::string who_ = "worker:" + options_.id.ToString();  // in the history
  const Clock& clock_;
  std::unique_ptr<Poller> poller_;
  ProcessPool pool_;
  Executor executor_;
  Session session_;
  std::unordered_map<JobId, std::string> labels_;  // of running stages, for the log
  std::vector<std::unique_ptr<wire::ClientSocket>> sockets_;
  std::optional<MonoTime> drain_until_, settle_until_;
  std::vector<std::unique_ptr<StageQuestion>> questions_;
  bool handed_back_ = false, released_ = false;
};

Worker::Worker(WorkerOptions options, const Clock& clock, std::unique_ptr<wire::Transport> transport)
    : options_(std::move(options)), clock_(clock), transport_(std::move(transport)) {}
Worker::~Worker() = default;

Result<void> Worker::Run() {
  auto done = RunLoop();
  {
    const std::scoped_lock lock(asked_mutex_);
    answers_none_ = true;
  }
  for (Asked& asked : TakeAsked())
    asked.answer.set_value(done ? Fail(ErrorCode::kCancelled, "the worker has ended") : std::unexpected(done.error()));
  return done;
}

Result<void> Worker::RunLoop() {
  MILLRACE_TRY(Check(options_));
  MILLRACE_TRY_ASSIGN(auto poller, Poller::Make());
  std::error_code error;
  std::string scratch = options_.scratch_root;
  std::optional<ScratchFolder> own_scratch;
  std::jthread sweeper;
  if (scratch.empty()) {
    const auto temporary = std::filesystem::temp_directory_path(error);
    if (error) return Fail(ErrorCode::kUnavailable, "temporary folder: {}", error.message());
    MILLRACE_TRY_ASSIGN(ScratchFolder made, ScratchFolder::Make(temporary, options_.id.ToString()));
    own_scratch.emplace(std::move(made));
    scratch = own_scratch->path();
  }
  {
    const SigpipeBlocked blocked;
    Loop loop(*this, std::move(poller), scratch);
    loop.WarmUp();
    MILLRACE_TRY(loop.Connect());
    // What killed workers left. There may be much of it: the end waits for one folder at most.
    if (own_scratch)
      sweeper = std::jthread([parent = std::filesystem::path(scratch).parent_path()](const std::stop_token& stop) {
        ScratchFolder::SweepDead(parent, stop);
      });
    LogInfo("worker '{}' ({}) starts: concurrency {}", options_.name, options_.id.ToString(), options_.concurrency);
    loop.Run();
  }
  LogInfo("worker '{}' has drained", options_.name);
  return {};
}

void Worker::Release(std::uint64_t stages) {
  expected_ = stages;
  released_ = true;
  transport_->Wake();
}

std::future<Result<std::string>> Worker::Ask(std::string request) {
  Asked asked{.request = std::move(request), .answer = {}};
  auto answer = asked.answer.get_future();
  {
    const std::scoped_lock lock(asked_mutex_);
    if (answers_none_) {
      asked.answer.set_value(Fail(ErrorCode::kCancelled, "the worker has ended"));
    } else {
      asked_.push_back(std::move(asked));
    }
  }
  transport_->Wake();
  return answer;
}

std::vector<Worker::Asked> Worker::TakeAsked() {
  const std::scoped_lock lock(asked_mutex_);
  return std::exchange(asked_, {});
}

void Worker::RequestDrain() {
  drain_requests_.fetch_add(1);
  transport_->Wake();
}

}  // namespace millrace::worker
