#include "common/model/stage_task.h"

#include <fmt/format.h>

#include "common/model/command_text.h"
#include "common/model/stage_task_json.h"

namespace millrace {
namespace {

// The separators inside a part would let two different effects share a key.
std::string Part(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c == '/' || c == '#' || c == '%' || static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out.empty() ? "-" : out;
}

}  // namespace

std::string EffectKey(OrgId org, std::string_view pipeline, std::string_view stage, std::string_view sink,
                      std::string_view slot_or_run, std::string_view partition, std::uint32_t generation) {
  return fmt::format("{}/{}/{}/{}/{}/{}#{}", org.value(), Part(pipeline), Part(stage), Part(sink), Part(slot_or_run),
                     Part(partition), generation);
}

template <class Ar, json_codec::MaybeConst<StageInput> T>
void Describe(Ar& ar, T& v) {
  ar("stage", v.stage);
  ar("effect", v.effect);
}

template <class Ar, json_codec::MaybeConst<BoundParam> T>
void Describe(Ar& ar, T& v) {
  ar("name", v.name);
  ar("type", v.type);
  ar("value", v.value);
}

template <class Ar, json_codec::MaybeConst<StageTask> T>
void Describe(Ar& ar, T& v) {
  const StageTask d;
  ar("org", v.org);
  ar("pipeline", v.pipeline);
  ar("version", v.version);
  ar("run", v.run);
  ar("job", v.job);
  ar("effect", v.effect);
  ar("generation", v.generation, d.generation);
  ar("slot_us", v.slot);
  ar("stage", v.stage);
  ar("inputs", v.inputs, d.inputs);
  ar("params", v.params, d.params);
  ar("base_dir", v.base_dir);
}

template <class Ar, json_codec::MaybeConst<CommandTask> T>
void Describe(Ar& ar, T& v) {
  const CommandTask d;
  ar("pipeline", v.pipeline);
  ar("stage", v.stage);
  ar("run", v.run);
  ar("job", v.job);
  ar("command", v.command);
  ar("base_dir", v.base_dir);
  ar("org", v.org, d.org);
}

template <class Ar, json_codec::MaybeConst<ConnectionSpec> T>
void Describe(Ar& ar, T& v) {
  ar("name", v.name);
  ar("type", v.type);
  ar("dsn", v.dsn);
}

template <class Ar, json_codec::MaybeConst<StageOrder> T>
void Describe(Ar& ar, T& v) {
  const StageOrder d;
  ar("task", v.task);
  ar("token", v.token);
  ar("lake", v.lake);
  ar("scratch", v.scratch);
  ar("connection", v.connection);
  ar("memory_bytes_max", v.memory_bytes_max, d.memory_bytes_max);
  ar("threads", v.threads, d.threads);
  ar("sandbox", v.sandbox, d.sandbox);
  ar("fence_only", v.fence_only, d.fence_only);
}

std::string ToJson(const StageTask& task) { return json_codec::Write(task); }

Result<StageTask> StageTaskFromJson(std::string_view json) {
  auto task = json_codec::Read<StageTask>(json, "stage_task");
  if (task && std::holds_alternative<CommandSpec>(task->stage.work))
    return Fail(ErrorCode::kCorrupt, "stage_task: stage.command: a command is not a data stage");
  return task;
}

std::string ToJson(const CommandTask& task) { return json_codec::Write(task); }

namespace {

// `at` names the command: "payload: command.".
Result<void> CheckCommand(std::string_view at, const CommandSpec& command, std::string_view base_dir) {
  for (std::size_t i = 0; i < command.argv.size(); ++i)
    if (HasNul(command.argv[i])) return Fail(ErrorCode::kInvalidArgument, "{}argv[{}]: contains a NUL", at, i);
  for (const auto& [name, value] : command.env) {
    if (HasNul(name)) return Fail(ErrorCode::kInvalidArgument, "{}env: a name contains a NUL", at);
    if (!IsVariableName(name))
      return Fail(ErrorCode::kInvalidArgument, "{}env: '{}' is not the name of an environment variable", at, name);
    if (HasNul(value)) return Fail(ErrorCode::kInvalidArgument, "{}env.{}: contains a NUL", at, name);
  }
  if (HasNul(base_dir)) return Fail(ErrorCode::kInvalidArgument, "{}: base_dir: contains a NUL", at.substr(0, at.find(':')));
  return {};
}

}  // namespace

Result<CommandTask> CommandTaskFromJson(std::string_view json) {
  auto task = json_codec::Read<CommandTask>(json, "command_task");
  if (!task) return task;
  if (task->command.argv.empty()) return Fail(ErrorCode::kCorrupt, "command_task: command.argv: is empty");
  if (auto checked = CheckCommand("command_task: command.", task->command, task->base_dir); !checked)
    return Fail(ErrorCode::kCorrupt, "{}", checked.error().message);
  return task;
}

namespace {

struct ShortCommand {
  CommandSpec command;
  std::string base_dir = "/";
};

template <class Ar, json_codec::MaybeConst<ShortCommand> T>
void Describe(Ar& ar, T& v) {
  const ShortCommand d;
  ar("argv", v.command.argv);
  ar("env", v.command.env, d.command.env);
  ar("base_dir", v.base_dir, d.base_dir);
}

}  // namespace

Result<std::string> CommandPayload(std::string_view json, JobId job, OrgId org) {
  if (auto whole = json_codec::Read<CommandTask>(json, "payload"); whole && !whole->command.argv.empty()) {
    MILLRACE_TRY(CheckCommand("payload: command.", whole->command, whole->base_dir));
    if (whole->job != job) return Fail(ErrorCode::kInvalidArgument, "payload: is the command of job {}", whole->job.ToString());
    if (whole->org == org) return std::string(json);
    whole->org = org;
    return ToJson(*whole);
  }
  auto given = json_codec::Read<ShortCommand>(json, "payload");
  if (!given) return Fail(ErrorCode::kInvalidArgument, "{}", given.error().message);
  if (given->command.argv.empty() || given->command.argv.front().empty())
    return Fail(ErrorCode::kInvalidArgument, "payload: argv: names no program");
  MILLRACE_TRY(CheckCommand("payload: ", given->command, given->base_dir));
  if (!given->base_dir.starts_with('/'))
    return Fail(ErrorCode::kInvalidArgument, "payload: base_dir: '{}' is not absolute", given->base_dir);
  CommandTask task;
  task.stage = "command";
  task.run = RunId{job.uuid};  // no run: what it leaves behind is filed under its own id
  task.job = job;
  task.command = std::move(given->command);
  task.base_dir = std::move(given->base_dir);
  task.org = org;
  return ToJson(task);
}

std::string ShortId(RunId run) {
  constexpr std::size_t kTimeLength = 13;  // "0193e0c5-0000": the 48 bits of a UUIDv7's time
  return run.ToString().substr(0, kTimeLength);
}

std::string DescribeJob(std::string_view kind, std::string_view payload) {
  const auto text = [](const auto& task, std::string_view stage) {
    return fmt::format("pipeline {}, run {}, stage {}", task.pipeline, ShortId(task.run), stage);
  };
  if (kind == kJobKindStage) {
    const auto task = StageTaskFromJson(payload);
    if (!task) return {};
    return text(*task, task->stage.name) + (task->slot ? ", slot " + ToRfc3339(*task->slot) : "");
  }
  if (kind != kJobKindCommand) return {};
  const auto task = CommandTaskFromJson(payload);
  return task && !task->pipeline.empty() ? text(*task, task->stage) : "";  // a single job has no pipeline
}

std::string ToJson(const StageOrder& order) { return json_codec::Write(order); }

Result<StageOrder> StageOrderFromJson(std::string_view json) {
  auto order = json_codec::Read<StageOrder>(json, "stage_order");
  if (order && std::holds_alternative<CommandSpec>(order->task.stage.work))
    return Fail(ErrorCode::kCorrupt, "stage_order: task.stage.command: a command is not a data stage");
  return order;
}

std::string ToJson(const StageResult& result) { return json_codec::Write(result); }

Result<StageResult> StageResultFromJson(std::string_view json) { return json_codec::Read<StageResult>(json, "stage_result"); }

}  // namespace millrace
