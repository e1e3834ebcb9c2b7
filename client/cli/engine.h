// Broker, worker and scheduler running in this process, wired together from the configuration: the composition root of `run`,
// `up`, `broker`, `worker` and `scheduler`.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <string>

#include "client/cli/context.h"
#include "common/base/result.h"
#include "common/wire/transport.h"

namespace millrace::cli {

struct EngineParts {
  bool broker = false, worker = false, scheduler = false;
  bool held = false;  // the worker takes no job, and retention prunes nothing, before Release
};

class Engine {
 public:
  // Starts the parts. With broker and worker in one process they talk over inproc sockets. Block SIGTERM and SIGINT before
  // (BlockStopSignals), so that only the caller takes them. `context` must outlive the engine.
  static Result<std::unique_ptr<Engine>> Start(Context& context, EngineParts parts);
  // The same in two steps. The first starts only what takes long and touches nothing of the home: with broker and worker in one
  // process the worker, whose stage processes warm up meanwhile; it has no work before Open has started the rest.
  static Result<std::unique_ptr<Engine>> Prepare(Context& context, EngineParts parts);
  Result<void> Open();
  // Of an engine with a held worker, from Prepare on: an answer of millrace-stage, as Worker::Ask.
  std::future<Result<std::string>> Ask(std::string request);
  // Makes the lake, and lets a held worker take jobs, of which `stages` will be stages (Worker::Release).
  Result<void> Release(std::uint64_t stages);
  ~Engine();  // stops at once what still runs

  // Where clients of the broker connect, and a transport to do it with (one per calling thread).
  std::string client_endpoint() const;
  Result<std::unique_ptr<wire::Transport>> MakeTransport() const;

  // The first call: take nothing new, finish what runs within the drain timeout, hand the rest back. The second: hand back now.
  void RequestStop();
  // Whether every part has ended by itself or after RequestStop.
  bool Ended() const;
  // Waits for the end of every part. The first error that ended one.
  Result<void> Join();

 private:
  struct Parts;
  explicit Engine(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// SIGTERM and SIGINT, for this thread and those it starts: they are taken by StopSignalPending alone.
void BlockStopSignals();
bool StopSignalPending();  // takes one, without waiting
bool StopSignalWaits();    // leaves it to be taken; never where they are not blocked

// Serves until SIGTERM or SIGINT; a second signal hands running jobs back at once.
Result<void> ServeUntilSignal(Engine& engine);

}  // namespace millrace::cli
