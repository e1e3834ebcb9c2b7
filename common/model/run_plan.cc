#include "common/model/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include <nlohmann/json.hpp>

#include "common/base/suggest.h"
#include "common/model/param.h"
#include "common/model/stage_task.h"

namespace millrace {
namespace {

Result<std::vector<BoundParam>> BindParams(const Pipeline& pipeline, const std::map<std::string, std::string>& overrides) {
  std::vector<std::string_view> names;
  for (const ParamSpec& p : pipeline.params) names.push_back(p.name);
  for (const auto& [name, value] : overrides) {
    if (std::ranges::find(names, name) != names.end()) continue;
    const auto near = Suggest(name, names);
    return Fail(ErrorCode::kInvalidArgument, "pipeline '{}' has no parameter '{}'{}", pipeline.name, name,
                near            ? fmt::format("; did you mean '{}'?", *near)
                : names.empty() ? ""
                                : fmt::format("; it has: {}", fmt::join(names, ", ")));
  }
  std::vector<BoundParam> bound;
  for (const ParamSpec& p : pipeline.params) {
    const auto it = overrides.find(p.name);
    if (it == overrides.end() && p.required)
      return Fail(ErrorCode::kInvalidArgument, "parameter '{}' ({}) is required: give {}=...", p.name, p.type, p.name);
    auto value = CanonicalParam(p.type, it == overrides.end() ? p.default_value : it->second);
    if (!value) return Prefixed(std::move(value.error()), "parameter '{}'", p.name);
    bound.push_back({p.name, p.type, std::move(*value)});
  }
  return bound;
}

std::string ParamsJson(const std::vector<BoundParam>& params) {
  auto json = nlohmann::ordered_json::object();
  for (const BoundParam& p : params) json[p.name] = p.value;
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string Absolute(const std::string& base_dir, std::string_view path) {
  if (path.starts_with('/')) return std::string(path);
  return base_dir + (base_dir.ends_with('/') ? "" : "/") + std::string(path);
}

// The directory above the first component that has a glob, or above the file.
std::string DirectoryOf(std::string_view path) {
  const auto glob = path.find_first_of("*?[{");
  const auto slash = path.substr(0, glob).rfind('/');
  if (slash == std::string_view::npos) return "";
  return slash == 0 ? "/" : std::string(path.substr(0, slash));
}

std::string CommonDirectory(std::string a, std::string_view b) {
  while (!a.empty() && a != "/" && !(b == a || (b.starts_with(a) && b[a.size()] == '/'))) {
    const auto slash = a.rfind('/');
    if (slash == std::string::npos) return "";
    a.resize(std::max<std::size_t>(slash, 1));
  }
  return a;
}

std::string RootOf(const ExtractSpec& extract, const std::string& base_dir) {
  std::string root;
  for (const std::string& path : extract.paths) {
    const std::string directory = DirectoryOf(Absolute(base_dir, path));
    root = root.empty() ? directory : CommonDirectory(std::move(root), directory);
  }
  return root;
}

std::string SinkOf(const StageSpec& stage) {
  const auto* load = std::get_if<LoadSpec>(&stage.work);
  if (!load) return "lake";
  return fmt::format("{}:{}", load->to, load->to == "file" ? load->path : load->table);
}

}  // namespace

Result<RunPlan> PlanRun(const Pipeline& pipeline, const RunRequest& request, IdGenerator& ids) {
  MILLRACE_TRY_ASSIGN(const std::vector<BoundParam> params, BindParams(pipeline, request.params));
  RunPlan plan;
  RunSpec& run = plan.run;
  run.id = ids.Next<RunId>();
  run.org = request.org;
  run.pipeline = pipeline.name;
  run.version = request.version;
  run.schedule = request.schedule;
  run.slot = request.slot;
  run.generation = request.generation;
  run.overlap = request.overlap;
  run.params = ParamsJson(params);
  run.created_at = request.now;

  const std::string instant = request.slot ? ToRfc3339(*request.slot) : run.id.ToString();
  const auto effect_of = [&](const StageSpec& stage) {
    return EffectKey(request.org, pipeline.name, stage.name, SinkOf(stage), instant, "-", request.generation);
  };
  std::unordered_map<std::string_view, JobId> job_of;
  std::unordered_map<std::string_view, const StageSpec*> stage_of;
  for (const StageSpec& stage : pipeline.stages) {
    JobSpec job;
    job.id = ids.Next<JobId>();
    job.org = request.org;
    job.run = run.id;
    job.stage = stage.name;
    job.queue = stage.queue;
    job.priority = std::max(stage.priority, request.priority_min);
    job.retry = stage.retry;
    job.timeout = stage.timeout;
    job.options.backoff = stage.backoff;
    job.options.no_retry = stage.no_retry;
    job.options.limit_key = stage.limit_key;
    job.options.route_rows = stage.route_rows;
    if (stage.deadline > Millis{0}) job.options.deadline = request.now + stage.deadline;
    job.submitted_at = request.now;
    if (stage.depends_on.empty()) job.run_at = request.run_at;
    for (const std::string& name : stage.depends_on) {
      const auto it = job_of.find(name);
      if (it == job_of.end())
        return Fail(ErrorCode::kInvalidArgument, "stage '{}' depends on '{}', which is no earlier stage", stage.name, name);
      job.depends_on.push_back(it->second);
    }
    if (const auto* command = std::get_if<CommandSpec>(&stage.work)) {
      job.kind = kJobKindCommand;
      job.payload = ToJson(CommandTask{pipeline.name, stage.name, run.id, job.id, *command, request.base_dir, request.org});
    } else {
      job.kind = kJobKindStage;
      job.effect = effect_of(stage);
      job.options.has_sink = std::holds_alternative<LoadSpec>(stage.work);
      StageTask task{request.org,        pipeline.name, request.version, run.id, job.id, job.effect,
                     request.generation, request.slot,  stage,           {},     params, request.base_dir};
      for (const std::string& input : stage.inputs) {
        const auto it = stage_of.find(input);
        if (it == stage_of.end())
          return Fail(ErrorCode::kInvalidArgument, "stage '{}' reads '{}', which is no earlier stage", stage.name, input);
        if (std::holds_alternative<LoadSpec>(it->second->work) || std::holds_alternative<CommandSpec>(it->second->work))
          return Fail(ErrorCode::kInvalidArgument, "stage '{}' reads '{}', a {} stage, which makes no data", stage.name, input,
                      it->second->KindName());
        task.inputs.push_back({input, effect_of(*it->second)});
      }
      if (const auto* extract = std::get_if<ExtractSpec>(&stage.work)) job.root = RootOf(*extract, request.base_dir);
      job.payload = ToJson(task);
    }
    if (job.payload.size() > kPayloadBytesMax)
      return Fail(ErrorCode::kInvalidArgument, "stage '{}': its definition has {} bytes, the limit is {}", stage.name,
                  job.payload.size(), kPayloadBytesMax);
    job_of.emplace(stage.name, job.id);
    stage_of.emplace(stage.name, &stage);
    plan.jobs.push_back(std::move(job));
  }
  return plan;
}

}  // namespace millrace
