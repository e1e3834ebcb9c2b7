#include "common/model/pipeline_parser.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <queue>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "common/drivers/yaml.h"
#include "common/model/cron.h"
#include "common/model/param.h"
#include "common/model/parse_context.h"
#include "common/model/schedule_rules.h"
#include "common/model/sql_scan.h"

namespace millrace {
namespace {

constexpr std::size_t kCycleShownMax = 20;  // names of a cycle in its message

class PipelineParser {
 public:
  PipelineParser(ParseContext& context, const ParseOptions& options) : context_(context), options_(options) {}

  Pipeline Parse(const YamlNode& root) {
    if (!context_.IsMapping(root, "a pipeline file")) return {};
    context_.OnlyKeys(root, {"version", "pipeline", "description", "schedule", "params", "route_by_size", "stages"},
                      "a pipeline file");
    Header(root);
    const YamlNode* schedule = root.Find("schedule");
    scheduled_ = schedule != nullptr;
    if (schedule) Schedule(*schedule);
    if (const YamlNode* params = root.Find("params")) Params(*params);
    if (const YamlNode* stages = context_.Need(root, root, "stages", "a pipeline file")) Stages(*stages);
    for (const StageSpec& stage : pipeline_.stages)
      if (std::holds_alternative<LoadSpec>(stage.work) || std::holds_alternative<CommandSpec>(stage.work))
        no_data_.emplace(stage.name, stage.KindName());
    for (StageSpec& stage : pipeline_.stages) Derive(stage);
    RouteBySize(root.Find("route_by_size"));
    Sort();
    return std::move(pipeline_);
  }

 private:
  void Header(const YamlNode& root) {
    if (const YamlNode* version = context_.Need(root, root, "version", "a pipeline file")) {
      if (!version->plain || version->text != "1")
        context_.Add(*version, "unsupported_version",
                     fmt::format("version '{}' of the language is not supported", version->text), "write version: 1");
    }
    const YamlNode* name = context_.Need(root, root, "pipeline", "a pipeline file");
    if (name && context_.IsName(*name, "pipeline")) pipeline_.name = name->text;
    if (const YamlNode* description = root.Find("description"))
      if (auto text = context_.Text(*description, "description")) pipeline_.description = std::move(*text);
  }

  void Schedule(const YamlNode& node) {
    if (!context_.IsMapping(node, "schedule")) return;
    context_.OnlyKeys(
        node, {"cron", "timezone", "start", "end", "catchup", "overlap", "max_parallel", "dst", "misfire_grace", "jitter"},
        "schedule");
    ScheduleSpec spec;
    const YamlNode* cron = context_.Need(node, node, "cron", "schedule");
    if (cron)
      spec.cron = context_.Text(*cron, "schedule.cron", "write 5 fields, for example \"0 6 * * *\", or @daily").value_or("");
    if (const YamlNode* zone = node.Find("timezone")) spec.timezone = context_.Text(*zone, "schedule.timezone").value_or("UTC");
    if (const YamlNode* catchup = node.Find("catchup")) Catchup(spec, *catchup);
    if (const YamlNode* overlap = node.Find("overlap"))
      if (auto word = context_.OneOf(*overlap, "schedule.overlap", {"skip", "queue", "allow", "cancel"})) spec.overlap = *word;
    if (const YamlNode* dst = node.Find("dst"))
      if (auto word = context_.OneOf(*dst, "schedule.dst", {"once", "skip", "both"})) spec.dst = *word;
    if (const YamlNode* grace = node.Find("misfire_grace"))
      spec.misfire_grace = context_.Duration(*grace, "schedule.misfire_grace").value_or(spec.misfire_grace);
    Jitter(spec, node);
    MaxParallel(spec, node);
    Range(spec, node);
    if (spec.cron.empty() || !context_.clean()) return;
    if (const auto wrong = Validate(spec)) {
      const YamlNode* zone = node.Find("timezone");
      const bool about_zone = zone && wrong->find("zone") != std::string::npos;
      context_.Add(about_zone ? *zone : *cron, "bad_schedule", *wrong);
      return;
    }
    pipeline_.schedules.push_back(std::move(spec));
  }

  void Jitter(ScheduleSpec& spec, const YamlNode& node) {
    const YamlNode* jitter = node.Find("jitter");
    if (!jitter) return;
    spec.jitter = context_.Duration(*jitter, "schedule.jitter").value_or(Millis{0});
    if (spec.jitter > kJitterMax)
      context_.Add(*jitter, "bad_value", fmt::format("schedule.jitter is {}; it must be at most 24h", jitter->text));
  }

  void MaxParallel(ScheduleSpec& spec, const YamlNode& node) {
    const YamlNode* max = node.Find("max_parallel");
    if (!max) return;
    spec.max_parallel =
        static_cast<std::uint32_t>(context_.Integer(*max, "schedule.max_parallel", 1, kMaxParallelMax).value_or(0));
    if (spec.overlap != "allow")
      context_.Add(*max, "bad_value", fmt::format("schedule.max_parallel has no meaning with overlap: {}", spec.overlap),
                   "write overlap: allow, or leave max_parallel out");
  }

  // start and end: each by itself, so that the mark is at the one that is wrong. A wrong zone is complained about elsewhere.
  void Range(ScheduleSpec& spec, const YamlNode& node) {
    for (const auto& [key, field, edge] :
         {std::tuple{"start", &spec.start, RangeEdge::kFrom}, std::tuple{"end", &spec.end, RangeEdge::kTo}}) {
      const YamlNode* value = node.Find(key);
      if (!value) continue;
      *field = context_.Text(*value, fmt::format("schedule.{}", key)).value_or("");
      if (field->empty() || !ParseRangeEdge("2000-01-01", spec.timezone, edge)) continue;
      if (const auto at = ParseRangeEdge(*field, spec.timezone, edge); !at)
        context_.Add(*value, "bad_value", fmt::format("schedule.{}: {}", key, at.error().message));
    }
    const auto start = ParseRangeEdge(spec.start, spec.timezone, RangeEdge::kFrom);
    const auto end = ParseRangeEdge(spec.end, spec.timezone, RangeEdge::kTo);
    if (start && end && *end <= *start)
      context_.Add(*node.Find("end"), "bad_value",
                   fmt::format("schedule.end {} is not after schedule.start {}: it would never fire", spec.end, spec.start),
                   "write a later end, an earlier start, or leave one of them out");
  }

  std::optional<std::string> Validate(const ScheduleSpec& spec) const {
    if (options_.schedule_validator) return options_.schedule_validator(spec);
    auto made = CronSchedule::Make(spec);
    if (made) return std::nullopt;
    return made.error().message;
  }

  void Catchup(ScheduleSpec& spec, const YamlNode& node) {
    const std::string_view s = node.text;
    if (node.kind != YamlNode::Kind::kScalar || !s.starts_with("all(")) {
      if (auto word = context_.OneOf(node, "schedule.catchup", {"none", "latest", "all", "all(N)"})) spec.catchup = *word;
      return;
    }
    std::uint32_t count = 0;
    const auto [end, ec] = std::from_chars(s.data() + 4, s.data() + s.size(), count);
    if (ec == std::errc{} && s.substr(static_cast<std::size_t>(end - s.data())) == ")" && s[4] != '0' &&
        count <= kCatchupRunsMax) {
      spec.catchup = s;
    } else {
      context_.Add(
          node, "bad_value",
          fmt::format("schedule.catchup is {}; N of all(N) must be a number between 1 and {}", Shown(s), kCatchupRunsMax),
          "write for example all(10), or all for every slot");
    }
  }

  void Params(const YamlNode& node) {
    if (node.IsNull()) return;
    if (!context_.IsMapping(node, "params")) return;
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      if (!context_.IsName(node.keys[i], "parameter")) continue;
      ParamSpec param;
      param.name = node.keys[i].text;
      param.type = "text";
      const YamlNode& value = node.items[i];
      if (value.kind == YamlNode::Kind::kMapping) {
        LongParam(param, node.keys[i], value);
      } else {
        Default(param, value, /*infer=*/true);
      }
      pipeline_.params.push_back(std::move(param));
    }
  }

  void LongParam(ParamSpec& param, const YamlNode& key, const YamlNode& node) {
    context_.OnlyKeys(node, {"type", "default", "required"}, "a parameter");
    const YamlNode* type = node.Find("type");
    if (type)
      if (auto word =
              context_.OneOf(*type, "the type of a parameter", {"text", "bigint", "double", "boolean", "date", "timestamp"}))
        param.type = *word;
    if (const YamlNode* required = node.Find("required")) param.required = context_.Bool(*required, "required").value_or(false);
    const YamlNode* value = node.Find("default");
    if (value && param.required) {
      context_.Add(*value, "bad_value", fmt::format("parameter '{}' is required and has a default", param.name),
                   "keep one of the two");
    } else if (value) {
      Default(param, *value, /*infer=*/!type);
    } else if (!param.required) {
      context_.Add(key, "missing_key", fmt::format("parameter '{}' has no default", param.name),
                   "add 'default' or 'required: true'");
    } else if (scheduled_) {
      context_.Add(key, "bad_value",
                   fmt::format("parameter '{}' is required, and a slot of the schedule has no value for it", param.name),
                   "write 'default' in place of 'required: true', or leave the schedule out");
    }
  }

  void Default(ParamSpec& param, const YamlNode& node, bool infer) {
    if (node.kind != YamlNode::Kind::kScalar || node.IsNull()) {
      context_.Add(node, "wrong_type", fmt::format("the default of parameter '{}' must be a single value", param.name),
                   "write one text, number, date, true or false");
      return;
    }
    if (infer) param.type = node.plain ? InferParamType(node.text) : "text";
    auto value = CanonicalParam(param.type, node.text);
    if (!value)
      return context_.Add(node, "wrong_type", fmt::format("parameter '{}': {}", param.name, value.error().message),
                          fmt::format("write a {}, or give the parameter another type", param.type));
    param.default_value = std::move(*value);
  }

  void Stages(const YamlNode& node) {
    if (!context_.IsMapping(node, "stages")) return;
    if (node.keys.empty())
      context_.Add(node, "bad_value", "the pipeline has no stage", "add one, for example hello: { command: [echo, hello] }");
    if (node.keys.size() > kStagesPerPipelineMax) {
      context_.Add(node.keys[kStagesPerPipelineMax], "too_many_stages",
                   fmt::format("{} stages; the limit is {}", node.keys.size(), kStagesPerPipelineMax),
                   "make several pipelines of it");
      return;
    }
    names_.reserve(node.keys.size());
    for (const YamlNode& key : node.keys) names_.push_back(key.text);
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      auto stage = ParseStage(context_, node.keys[i], node.items[i]);
      if (!stage) continue;
      const YamlNode& body = node.items[i];
      nodes_[stage->name] = {&node.keys[i], &body};
      pipeline_.stages.push_back(std::move(*stage));
    }
    known_.insert(names_.begin(), names_.end());
  }

  // The pipeline's word holds for every stage that reads others and says nothing itself: no queue and no route_by_size.
  void RouteBySize(const YamlNode* of_pipeline) {
    const std::int64_t rows = of_pipeline ? ParseRouteBySize(context_, *of_pipeline).value_or(0) : 0;
    for (StageSpec& stage : pipeline_.stages) {
      const YamlNode& body = *nodes_[stage.name].body;
      const YamlNode* own = body.Find("route_by_size");
      if (own == nullptr && body.Find("queue") == nullptr && !stage.inputs.empty()) stage.route_rows = rows;
      if (own && stage.route_rows > 0 && stage.inputs.empty())
        context_.Add(*own, "bad_value",
                     fmt::format("stage '{}' reads no other stage: its size is not known before it runs", stage.name),
                     "leave route_by_size out");
    }
  }

  struct Nodes {
    const YamlNode* key = nullptr;
    const YamlNode* body = nullptr;
  };

  bool Known(const std::string& name, const YamlNode& at, std::string_view who) {
    if (known_.contains(name)) return true;
    context_.Add(at, "unknown_stage", fmt::format("{} names the stage '{}', which does not exist", who, name),
                 ParseContext::DidYouMeanOf(name, names_, "stages"));
    return false;
  }

  void Derive(StageSpec& stage) {
    const YamlNode& body = *nodes_[stage.name].body;
    if (const auto* load = std::get_if<LoadSpec>(&stage.work); load && !load->from.empty()) {
      const YamlNode* block = body.Find("load");
      if (block == nullptr || block->Find("from") == nullptr) return;  // of a stage named twice: complained of already
      const YamlNode& from = *block->Find("from");
      if (Known(load->from, from, "load.from")) stage.inputs.push_back(load->from);
      if (const auto it = no_data_.find(load->from); it != no_data_.end())
        context_.Add(from, "no_data", NoData(load->from, it->second), "name an extract or a transform");
    }
    if (const auto* load = std::get_if<LoadSpec>(&stage.work); load && load->to == "file") KeepOffSources(*load, body);
    if (const auto* transform = std::get_if<TransformSpec>(&stage.work); transform && !transform->sql.empty())
      DeriveFromSql(stage, transform->sql);
    for (const std::string& input : stage.inputs) stage.depends_on.push_back(input);
    if (const YamlNode* after = body.Find("after")) {
      for (const std::string& name : stage.after)
        if (Known(name, ItemOf(*after, name), "after")) stage.depends_on.push_back(name);
    }
    std::ranges::sort(stage.depends_on);
    const auto repeated = std::ranges::unique(stage.depends_on);
    stage.depends_on.erase(repeated.begin(), repeated.end());
  }

  // A file that this pipeline writes must not be one that it reads: the next run would read its own result, or find the source
  // changed. Relative and absolute paths are not compared here; the load itself knows both.
  void KeepOffSources(const LoadSpec& load, const YamlNode& body) {
    if (load.path.empty()) return;
    const auto plain = [](const std::string& path) { return std::filesystem::path(path).lexically_normal().string(); };
    for (const StageSpec& stage : pipeline_.stages) {
      const auto* extract = std::get_if<ExtractSpec>(&stage.work);
      if (!extract) continue;
      for (const std::string& pattern : extract->paths)
        if (::fnmatch(plain(pattern).c_str(), plain(load.path).c_str(), FNM_PATHNAME) == 0)
          context_.Add(*body.Find("load")->Find("path"), "bad_value",
                       fmt::format("load.path is a file that stage '{}' extracts ({})", stage.name, pattern),
                       "write to another path");
    }
  }

  static std::string NoData(std::string_view name, std::string_view kind) {
    return fmt::format("'{}' is a {} stage and makes no data to read", name, kind);
  }

  static const YamlNode& ItemOf(const YamlNode& list, std::string_view text) {
    for (const YamlNode& item : list.items)
      if (item.text == text) return item;
    return list;
  }

  void DeriveFromSql(StageSpec& stage, const std::string& sql) {
    const YamlNode* node = nodes_[stage.name].body->Find("transform");
    if (node->kind == YamlNode::Kind::kMapping) node = node->Find("sql");
    const SqlScan scan = ScanSql(sql);
    const auto complain = [&](std::size_t offset, std::size_t length, std::string code, std::string message, std::string help) {
      const auto [place, marked] = MarkInText(*node, sql, offset, length);
      context_.Add(place, marked, std::move(code), std::move(message), std::move(help));
    };
    if (scan.problem) return complain(scan.problem->offset, 1, "bad_sql", "SQL: " + scan.problem->message, "");
    const std::string& first = scan.first_word;
    if (scan.statements == 0) return complain(0, 1, "bad_sql", "SQL: there is no statement", "write one SELECT");
    if (scan.statements > 1)
      return complain(0, 1, "bad_sql", fmt::format("SQL: {} statements; a transform is exactly one", scan.statements),
                      "make a stage of each");
    if (first != "select" && first != "with" && first != "from" && first != "values")
      return complain(sql.find_first_not_of(" \t\r\n"), first.size(), "bad_sql",
                      fmt::format("SQL: a transform starts with SELECT, WITH, FROM or VALUES, not '{}'", first),
                      "a transform only reads; its rows go where a load stage says");
    for (const SqlReference& file : scan.files)
      complain(file.offset, file.length, "bad_sql", "SQL: a transform reads stages, not files",
               "add a stage with extract: { from: file, path: ... } and name it here");
    for (const SqlReference& table : scan.tables) {
      if (known_.contains(table.name)) {
        stage.inputs.push_back(table.name);
        if (const auto it = no_data_.find(table.name); it != no_data_.end())
          complain(table.offset, table.length, "no_data", NoData(table.name, it->second), "name an extract or a transform");
      } else {
        complain(table.offset, table.length, "unknown_stage", fmt::format("the SQL reads '{}', which is no stage", table.name),
                 ParseContext::DidYouMeanOf(table.name, names_, "stages"));
      }
    }
    for (const SqlReference& param : scan.params) {
      if (HasParam(param.name)) {
        stage.param_names.push_back(param.name);
      } else {
        complain(param.offset, param.length, "unknown_param",
                 fmt::format("the SQL binds ${}, which is no parameter", param.name), SuggestParam(param.name));
      }
    }
  }

  bool HasParam(std::string_view name) const {
    return std::ranges::find(pipeline_.params, name, &ParamSpec::name) != pipeline_.params.end();
  }
  std::string SuggestParam(std::string_view name) const {
    std::vector<std::string_view> names;
    for (const ParamSpec& p : pipeline_.params) names.push_back(p.name);
    std::string help = ParseContext::DidYouMean(name, names);
    return help.empty() ? fmt::format("declare it: params: {{ {}: ... }}", name) : help;
  }

  void Sort() {
    const std::size_t n = pipeline_.stages.size();
    std::unordered_map<std::string_view, std::size_t> index;
    for (std::size_t i = 0; i < n; ++i) index.emplace(pipeline_.stages[i].name, i);
    std::vector<std::vector<std::size_t>> users(n);
    std::vector<std::size_t> waiting(n, 0);
    for (std::size_t i = 0; i < n; ++i) {
      for (const std::string& name : pipeline_.stages[i].depends_on) {
        const auto it = index.find(name);
        if (it == index.end()) continue;  // a stage that could not be read: reported
        users[it->second].push_back(i);
        ++waiting[i];
      }
    }
    std::priority_queue<std::size_t, std::vector<std::size_t>, std::greater<>> ready;
    for (std::size_t i = 0; i < n; ++i)
      if (waiting[i] == 0) ready.push(i);
    std::vector<std::size_t> order;
    while (!ready.empty()) {
      const std::size_t i = ready.top();
      ready.pop();
      order.push_back(i);
      for (const std::size_t user : users[i])
        if (--waiting[user] == 0) ready.push(user);
    }
    if (order.size() < n) return Cycle(index, waiting);
    std::vector<StageSpec> sorted;
    sorted.reserve(n);
    for (const std::size_t i : order) sorted.push_back(std::move(pipeline_.stages[i]));
    pipeline_.stages = std::move(sorted);
  }

  // Every stage that still waits depends on one that waits too, so walking back must come round.
  void Cycle(const std::unordered_map<std::string_view, std::size_t>& index, const std::vector<std::size_t>& waiting) {
    std::size_t at = 0;
    while (waiting[at] == 0) ++at;
    std::vector<std::size_t> path;
    std::vector<std::ptrdiff_t> position(waiting.size(), -1);
    while (position[at] < 0) {
      position[at] = static_cast<std::ptrdiff_t>(path.size());
      path.push_back(at);
      for (const std::string& name : pipeline_.stages[at].depends_on) {
        const auto it = index.find(name);
        if (it == index.end() || waiting[it->second] == 0) continue;
        at = it->second;
        break;
      }
    }
    path.erase(path.begin(), path.begin() + position[at]);
    std::ranges::reverse(path);  // from dependency to user
    std::ranges::rotate(path, std::ranges::min_element(path));
    std::string text;
    for (std::size_t i = 0; i < path.size() && i < kCycleShownMax; ++i) text += pipeline_.stages[path[i]].name + " -> ";
    if (path.size() > kCycleShownMax) text += fmt::format("({} more) -> ", path.size() - kCycleShownMax);
    const StageSpec& first = pipeline_.stages[path.front()];
    context_.Add(*nodes_[first.name].key, "pipeline_cycle", fmt::format("stages wait for each other: {}{}", text, first.name),
                 "no stage of this circle can ever start; remove one of its arrows");
  }

  ParseContext& context_;
  const ParseOptions& options_;
  bool scheduled_ = false;
  Pipeline pipeline_;
  std::vector<std::string_view> names_;
  std::set<std::string_view> known_;
  std::unordered_map<std::string, Nodes> nodes_;
  std::unordered_map<std::string, std::string_view> no_data_;  // stages that only write or run, and their kind
};

}  // namespace

namespace {

std::string_view LineOf(std::string_view source, int line) {
  for (; line > 1; --line) {
    const std::size_t end = source.find('\n');
    if (end == std::string_view::npos) return {};
    source.remove_prefix(end + 1);
  }
  return source.substr(0, source.find('\n'));
}

// `cron: */5 * * * *`, `path: *.csv`, `cron: @daily`: to YAML an alias or an error, to its writer a value. An alias proper is a
// star and one word.
void ExplainUnquoted(std::string_view source, YamlComplaint& c) {
  if (c.code != "yaml_alias" && c.code != "yaml_syntax") return;
  const std::string_view line = LineOf(source, c.line);
  const auto starts_value = [&](std::size_t at) {
    if (at >= line.size() || (line[at] != '*' && line[at] != '@' && line[at] != '%')) return false;
    const std::size_t before = line.find_last_not_of(' ', at == 0 ? 0 : at - 1);
    return at > 0 && before != std::string_view::npos && std::string_view(":[{,-").contains(line[before]);
  };
  // Columns count characters; only a line that is ASCII up to here is sure to be understood.
  const auto column = static_cast<std::size_t>(std::max(c.column, 1)) - 1;
  const std::size_t at = starts_value(column) ? column : column > 0 && starts_value(column - 1) ? column - 1 : line.size();
  if (at == line.size()) return;
  const bool flow = line.substr(0, at).find_first_of("{[") != std::string_view::npos;
  std::string_view value = line.substr(at, line.find_first_of(flow ? ",}]#" : "#", at) - at);
  while (!value.empty() && (value.back() == ' ' || value.back() == '\r')) value.remove_suffix(1);
  const auto word = [](char ch) {
    return (ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || ch == '_';
  };
  if (value.size() > 1 && value.front() == '*' && std::ranges::all_of(value.substr(1), word)) return;
  c.column = static_cast<int>(at) + 1;
  c.length = std::max(1, static_cast<int>(value.size()));
  c.code = "yaml_syntax";
  c.message = fmt::format("a value that begins with {} must be quoted", value.front());
  c.help = fmt::format("quote it: \"{}\"", value);
}

}  // namespace

namespace {

// A value that was not written has no place of its own: it is where its key is.
void PlaceNothing(YamlNode& node) {
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    YamlNode& item = node.items[i];
    if (item.line == 0 && i < node.keys.size()) {
      item.line = node.keys[i].line;
      item.column = node.keys[i].column;
      item.length = node.keys[i].length;
    }
    PlaceNothing(item);
  }
}

}  // namespace

ParseResult ParsePipeline(std::string_view source, std::string_view file_name, const ParseOptions& options) {
  ParseContext context(file_name);
  YamlDocument document = ParseYaml(source, {kPipelineFileBytesMax, kPipelineDepthMax});
  for (YamlComplaint& c : document.complaints) {
    ExplainUnquoted(source, c);
    if (c.code == "empty_file") c.help = "a pipeline file has at least version: 1, pipeline: NAME and stages";
  }
  for (const YamlComplaint& c : document.complaints)
    context.Add(SourcePlace{c.line, c.column}, c.length, c.code, c.message, c.help);
  ParseResult result;
  if (document.root) PlaceNothing(*document.root);
  if (document.root) result.pipeline = PipelineParser(context, options).Parse(*document.root);
  result.diagnostics = context.Take();
  if (!result.diagnostics.empty()) result.pipeline.reset();
  return result;
}

std::string RenderAll(const std::vector<Diagnostic>& diagnostics, std::string_view source) {
  std::string out;
  for (const Diagnostic& d : diagnostics) out += Render(d, source);
  return out;
}

}  // namespace millrace
