#include "worker/stage/run_stage.h"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <thread>

#include "common/model/lake.h"
#include "worker/stage/confine.h"
#include "worker/stage/extract/extract.h"
#include "worker/stage/files.h"
#include "worker/stage/input_sql.h"
#include "worker/stage/lake_writer.h"
#include "worker/stage/load/load.h"
#include "worker/stage/transform/transform.h"

namespace millrace {
namespace {

// The engine's own limit lies below the process's, so that it fails with a message before the allocator does.
std::uint64_t EngineMemory(std::uint64_t bytes) { return bytes / 5 * 4; }

struct Prepared {
  std::vector<Manifest> inputs;
  std::vector<std::string> readable;  // files, for the engine and the kernel
  std::vector<std::string> read_folders;
  std::vector<std::string> writable;  // folders, for both
  LoadReach load;                     // of a load
};

StageOutcome<void> PrepareLoad(const StageOrder& order, Prepared* out) {
  MILLRACE_TRY_ASSIGN(out->load, ReachOfLoad(order));
  const LoadReach& reach = out->load;
  out->writable.insert(out->writable.end(), reach.engine_folders.begin(), reach.engine_folders.end());
  return {};
}

StageOutcome<Prepared> Prepare(const StageOrder& order) {
  Prepared out;
  const StageTask& task = order.task;
  for (const auto& input : task.inputs) {
    MILLRACE_TRY_ASSIGN(Manifest manifest, LoadManifest(order.lake, task.org, task.pipeline, input));
    for (auto& path : InputPaths(manifest, order.lake)) out.readable.push_back(std::move(path));
    out.inputs.push_back(std::move(manifest));
  }
  if (!order.scratch.empty()) {
    MILLRACE_TRY(EnsureDirectory(order.scratch));
    out.writable.push_back(order.scratch);
  }
  if (const auto* extract = std::get_if<ExtractSpec>(&task.stage.work)) {
    for (const auto& pattern : extract->paths) out.read_folders.push_back(GlobFolder(task.base_dir, pattern));
  }
  if (std::holds_alternative<LoadSpec>(task.stage.work)) {
    MILLRACE_TRY(PrepareLoad(order, &out));
  } else {
    MILLRACE_TRY(LakeWriter::PrepareFolders(order));
    out.writable.push_back(LakeWriter::Folder(order));
  }
  return out;
}

StageOutcome<void> Wall(const StageOrder& order, const Prepared& prepared) {
  const LoadReach& load = prepared.load;
  std::vector<std::string> files = prepared.readable, folders = prepared.read_folders;
  files.insert(files.end(), load.read_files.begin(), load.read_files.end());
  folders.insert(folders.end(), load.read_folders.begin(), load.read_folders.end());
  const ConfineOptions options{.read_files = std::move(files),
                               .read_directories = std::move(folders),
                               .write_directories = prepared.writable,
                               .write_files = load.write_files,
                               .name_directories = load.name_folders,
                               .network = load.network,
                               .memory_bytes_max = order.memory_bytes_max,
                               .threads = order.threads};
  const auto done = order.sandbox ? Confine(options) : LimitResources(options);
  if (!done) return std::unexpected(StageFailure("sandbox_unavailable", done.error().message));
  return {};
}

Result<void> SetUpEngine(const StageOrder& order, const Prepared& prepared, duck::Connection& connection) {
  MILLRACE_TRY(connection.Configure(
      {.threads = order.threads, .memory_bytes_max = EngineMemory(order.memory_bytes_max), .temp_directory = order.scratch}));
  std::vector<std::string> folders;
  for (const auto& folder : prepared.writable) folders.push_back(folder + "/");
  return connection.Restrict(prepared.readable, folders);
}

// Looks at the engine's progress a few times a second while a statement runs.
class Watcher {
 public:
  Watcher(const duck::Connection& connection, const ProgressFn& progress)
      : thread_([&](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          while (!woken_.wait_for(lock, stop, std::chrono::milliseconds{250}, [] { return false; }) && !stop.stop_requested()) {
            if (const std::int64_t rows = connection.RowsProcessed(); rows > 0) progress(rows, 0);
          }
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any woken_;
  std::jthread thread_;
};

StageOutcome<StageResult> Dispatch(const StageOrder& order, duck::Connection& connection, const ProgressFn& progress) {
  const StageTask& task = order.task;
  if (std::holds_alternative<CommandSpec>(task.stage.work)) {
    return std::unexpected(StageFailure("invalid_stage", "a command is not run by millrace-stage"));
  }
  if (order.fence_only && !std::holds_alternative<LoadSpec>(task.stage.work))
    return std::unexpected(StageFailure("invalid_stage", "only a load has a fence to raise"));
  if (!std::holds_alternative<LoadSpec>(task.stage.work)) {
    MILLRACE_TRY_ASSIGN(auto published, LakeWriter(order, connection).FindPublished());
    if (published) return std::move(*published);
  }
  if (order.fence_only) {
    Prepared prepared;
    MILLRACE_TRY(PrepareLoad(order, &prepared));
    MILLRACE_TRY(Wall(order, prepared));
    MILLRACE_TRY(SetUpEngine(order, prepared, connection));
    return RaiseFence(order, connection);
  }
  MILLRACE_TRY_ASSIGN(Prepared prepared, Prepare(order));
  MILLRACE_TRY(Wall(order, prepared));
  SourceFiles sources;
  if (const auto* extract = std::get_if<ExtractSpec>(&task.stage.work)) {
    MILLRACE_TRY_ASSIGN(sources, FindSources(*extract, task.base_dir));
    prepared.readable = sources.paths;
  }
  MILLRACE_TRY(SetUpEngine(order, prepared, connection));
  const Watcher watcher(connection, progress);
  if (std::holds_alternative<ExtractSpec>(task.stage.work)) return RunExtract(order, sources, connection, progress);
  if (std::holds_alternative<TransformSpec>(task.stage.work)) return RunTransform(order, prepared.inputs, connection);
  if (prepared.inputs.size() != 1) return std::unexpected(StageFailure("invalid_stage", "a load has exactly one input"));
  return RunLoad(order, prepared.inputs.front(), connection, progress);
}

}  // namespace

StageResult RunStage(const StageOrder& order, duck::Connection& connection, const ProgressFn& progress) try {
  auto done = Dispatch(order, connection, progress);
  return done ? std::move(*done) : FailedStage(std::move(done.error()));
} catch (const std::bad_alloc&) {
  return FailedStage({"resource_exhausted", "out of memory", true});
} catch (const std::exception& e) {
  return FailedStage({"internal_error", e.what()});
}

}  // namespace millrace
