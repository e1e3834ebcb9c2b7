// A worker: takes jobs from one or more brokers and runs each in a child process. One thread (that of Run) owns everything
// and runs no job itself, so heartbeats never wait for one.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/result.h"
#include "common/model/stage_task.h"
#include "common/wire/transport.h"

namespace millrace::worker {

struct WorkerOptions {
  std::string name;                  // shown in reports and `status`; 1 .. kNameBytesMax bytes
  WorkerId id;                       // new for each process start
  std::vector<std::string> brokers;  // endpoints
  std::uint32_t concurrency = 1;     // attempts at a time
  std::vector<std::string> queues;   // empty = all
  std::vector<std::string> kinds = {"stage", "command"};
  std::vector<std::string> roots;  // absolute paths it can reach; empty = all
  std::string lake;                // absolute path of the lake's root
  std::string scratch_root;        // absolute; empty = a folder named by `id` under the system's temporary folder
  std::vector<ConnectionSpec> connections;
  std::string stage_program;           // path of millrace-stage
  std::size_t warm_stages = 1;         // stage processes kept ready
  std::uint64_t memory_bytes_max = 0;  // of one stage; 0 = no limit
  int threads_per_stage = 1;
  bool sandbox = true;
  int nice = 5;                  // of children, added to the worker's
  Millis drain_timeout{30'000};  // how long running attempts may go on after RequestDrain
  Millis settle_timeout{2000};   // how long to wait for the answers to the last reports
  Millis heartbeat = kHeartbeatInterval;
  bool held = false;  // takes no job before Release; is connected, warms up and answers Ask meanwhile
  // Called once, by the thread of Run, when the brokers have had the last word of a drained worker. Processes of stages that
  // have said their result may still be leaving.
  std::function<void()> on_goodbye;
};

class Worker {
 public:
  // `clock` must outlive the worker and move in real time.
  Worker(WorkerOptions options, const Clock& clock, std::unique_ptr<wire::Transport> transport);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Works until drained. kInvalidArgument for bad options; errors of Transport::Connect; kUnavailable when the machine lacks
  // resources to start. Call once; the calling thread must live until it returns.
  Result<void> Run();

  // The first call: take nothing more, finish what runs within drain_timeout, kill and hand back the rest. A second call: hand
  // back at once. From any thread, and async-signal-safe.
  void RequestDrain();

  // Lets a held worker take jobs. About `stages` of them will be stages, if that is known: no more processes are kept warm
  // than those will use; further ones start from nothing. From any thread.
  void Release(std::uint64_t stages = UINT64_MAX);

  // Has a process of its own answer a question (common/model/question_frame.h), which takes no slot of a job. kUnavailable: it
  // cannot be started; kCorrupt: it ended without an answer; kCancelled: the worker ended before. From any thread.
  std::future<Result<std::string>> Ask(std::string request);

  std::size_t running() const { return running_.load(); }            // attempts now; from any thread
  std::size_t live_brokers() const { return live_brokers_.load(); }  // that welcomed us and are not silent; from any thread

 private:
  class Loop;
  struct Asked {
    std::string request;
    std::promise<Result<std::string>> answer;
  };
  std::vector<Asked> TakeAsked();
  Result<void> RunLoop();
  WorkerOptions options_;
  const Clock& clock_;
  std::unique_ptr<wire::Transport> transport_;
  std::atomic<int> drain_requests_{0};
  std::atomic<bool> released_{false};
  std::atomic<std::uint64_t> expected_{UINT64_MAX};
  std::mutex asked_mutex_;
  std::vector<Asked> asked_;
  bool answers_none_ = false;  // Run has ended
  std::atomic<std::size_t> running_{0};
  std::atomic<std::size_t> live_brokers_{0};
};

}  // namespace millrace::worker
