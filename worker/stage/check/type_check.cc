#include "worker/stage/check/type_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "common/model/lake.h"
#include "common/model/pipeline_json.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/check/contract.h"
#include "worker/stage/extract/extract.h"
#include "worker/stage/extract/sources.h"
#include "worker/stage/lake_writer.h"

namespace millrace {
namespace {

SourcePlace PlaceIn(std::string_view sql, std::size_t offset) {
  SourcePlace place{.line = 1, .column = 1};
  for (std::size_t i = 0; i < std::min(offset, sql.size()); ++i) {
    if (sql[i] == '\n') {
      ++place.line;
      place.column = 1;
    } else if ((static_cast<unsigned char>(sql[i]) & 0xC0U) != 0x80U) {
      ++place.column;  // columns count characters, not bytes
    }
  }
  return place;
}

class Checker {
 public:
  Checker(duck::Connection& connection, const Pipeline& pipeline, const TypeCheckRequest& request)
      : connection_(connection), pipeline_(pipeline), request_(request) {}

  TypeCheck Run() {
    // Sources are looked at first. From then on the engine reads no file: what follows prepares texts of the pipeline, and
    // preparing a read_csv() opens its file already.
    for (const auto& stage : pipeline_.stages)
      if (std::holds_alternative<ExtractSpec>(stage.work)) SniffExtract(stage);
    if (const auto restricted = connection_.Restrict({}, {}); !restricted) {
      out_.problems.push_back(
          {.stage = {}, .code = "internal_error", .message = restricted.error().message, .help = {}, .place = {}});
      return std::move(out_);
    }
    for (const auto& stage : pipeline_.stages) {
      const auto known = [&](const std::string& name) { return columns_.contains(name); };
      if (!std::all_of(stage.inputs.begin(), stage.inputs.end(), known)) continue;
      if (std::holds_alternative<ExtractSpec>(stage.work) && sniffed_.contains(stage.name))
        Finish(stage, std::move(sniffed_[stage.name]));
      if (std::holds_alternative<TransformSpec>(stage.work)) CheckTransform(stage);
      if (std::holds_alternative<LoadSpec>(stage.work)) CheckLoad(stage);
    }
    return std::move(out_);
  }

 private:
  void Add(const StageSpec& stage, std::string code, std::string message, std::string help = {}, SourcePlace place = {}) {
    out_.problems.push_back(
        {.stage = stage.name, .code = std::move(code), .message = std::move(message), .help = std::move(help), .place = place});
  }

  void AddSqlError(const StageSpec& stage, std::string_view sql, const Error& error) {
    const duck::SqlError& detail = connection_.last_error();
    std::string help;
    if (detail.type == "Permission")
      help = "files are read by stages with extract: { from: file, path: ... }; name such a stage here";
    for (const auto& name : detail.candidates) help += fmt::format("{}{}", help.empty() ? "did you mean " : " or ", name);
    Add(stage, "sql_error", error.message, help, detail.position ? PlaceIn(sql, *detail.position) : SourcePlace{});
  }

  // The stage's rows become an empty table, for its own checks and for the stages that read it.
  void Finish(const StageSpec& stage, std::vector<ColumnSpec> columns) {
    if (stage.contract) {
      auto plan = PlanContract(connection_, columns, *stage.contract);
      if (!plan) return Add(stage, "contract", plan.error().message);
      columns = std::move(plan->columns);
    }
    std::string list;
    for (const auto& c : columns) list += fmt::format("{}{} {}", list.empty() ? "" : ", ", duck::QuoteName(c.name), c.type);
    const auto made = connection_.Execute(fmt::format("CREATE TEMP TABLE {} ({})", duck::QuoteName(stage.name), list));
    if (!made) return Add(stage, "unknown_type", made.error().message);
    CheckChecks(stage, stage.name);
    columns_[stage.name] = columns;
    out_.stages.push_back({.stage = stage.name, .columns = std::move(columns)});
  }

  void CheckChecks(const StageSpec& stage, const std::string& table) {
    for (const auto& check : stage.checks) {
      const std::string sql = OffendersSql(duck::QuoteName(table), check);
      if (sql.empty()) continue;
      if (const auto fits = connection_.Describe(sql); !fits)
        Add(stage, "invalid_check", fmt::format("check {}: {}", CheckName(check), fits.error().message));
    }
  }

  void SniffExtract(const StageSpec& stage) {
    const auto& spec = std::get<ExtractSpec>(stage.work);
    const std::string pinned = fmt::format("{}/{}", request_.lake, PinnedSchemaPath(request_.org, pipeline_.name, stage.name));
    auto sources = FindSources(spec, request_.base_dir);
    const auto stored = ReadPinnedSchema(pinned);
    const bool is_pinned = stored && stored->has_value();
    if (!sources) {
      Add(stage, sources.error().error_class, sources.error().message);
      // A pinned schema is enough to check the stages that read this one.
      if (!is_pinned || sources.error().error_class != "missing_file") return;
    }
    auto schema =
        ResolveSchema(connection_, sources ? *sources : SourceFiles{.paths = {}, .format = spec.format}, spec, pinned);
    if (!schema && !sources) return;  // without a file its format may be unknown
    if (!schema) return Add(stage, schema.error().error_class, schema.error().message);
    sniffed_[stage.name] = std::move(schema->columns);
  }

  void CheckTransform(const StageSpec& stage) {
    const auto& spec = std::get<TransformSpec>(stage.work);
    auto columns = connection_.Describe(spec.sql, request_.params);
    if (!columns) return AddSqlError(stage, spec.sql, columns.error());
    std::vector<std::string> names;
    for (const auto& c : *columns) names.push_back(c.name);
    std::sort(names.begin(), names.end());
    if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
      return Add(stage, "duplicate_column", fmt::format("two columns are named '{}'", *twice),
                 "give one of them another name with AS");
    }
    auto published = connection_.Describe(PublishSql(spec.sql, *columns), request_.params);
    if (!published) return AddSqlError(stage, spec.sql, published.error());
    Finish(stage, std::move(*published));
  }

  void CheckLoad(const StageSpec& stage) {
    const auto& spec = std::get<LoadSpec>(stage.work);
    const auto found = columns_.find(spec.from);
    if (found == columns_.end()) return;
    for (const auto& key : spec.key) {
      const bool there =
          std::any_of(found->second.begin(), found->second.end(), [&](const ColumnSpec& c) { return c.name == key; });
      if (!there) Add(stage, "unknown_column", fmt::format("key: stage '{}' has no column '{}'", spec.from, key));
    }
    CheckChecks(stage, spec.from);
  }

  duck::Connection& connection_;
  const Pipeline& pipeline_;
  const TypeCheckRequest& request_;
  std::map<std::string, std::vector<ColumnSpec>> columns_, sniffed_;
  TypeCheck out_;
};

}  // namespace

TypeCheck CheckPipeline(duck::Connection& connection, const Pipeline& pipeline, const TypeCheckRequest& request) {
  return Checker(connection, pipeline, request).Run();
}

std::string CheckPipelineJson(duck::Connection& connection, std::string_view request_json) try {
  const auto root = nlohmann::json::parse(request_json);
  auto pipeline = PipelineFromJson(root.at("pipeline").dump());
  if (!pipeline) return nlohmann::json{{"error", pipeline.error().message}}.dump();
  TypeCheckRequest request{.org = OrgId{root.value("org", std::int64_t{1})},
                           .base_dir = root.at("base_dir").get<std::string>(),
                           .lake = root.at("lake").get<std::string>()};
  const auto given = root.value("params", std::map<std::string, std::string>{});
  for (const auto& param : pipeline->params) {
    const auto value = given.find(param.name);
    request.params.push_back(
        {.name = param.name, .type = param.type, .value = value == given.end() ? param.default_value : value->second});
  }
  const TypeCheck checked = CheckPipeline(connection, *pipeline, request);
  nlohmann::ordered_json out = {{"problems", nlohmann::ordered_json::array()}, {"stages", nlohmann::ordered_json::array()}};
  for (const auto& p : checked.problems) {
    out["problems"].push_back({{"stage", p.stage},
                               {"code", p.code},
                               {"message", p.message},
                               {"help", p.help},
                               {"line", p.place.line},
                               {"column", p.place.column}});
  }
  for (const auto& s : checked.stages) {
    nlohmann::ordered_json columns = nlohmann::ordered_json::array();
    for (const auto& c : s.columns) columns.push_back({{"name", c.name}, {"type", c.type}, {"not_null", c.not_null}});
    out["stages"].push_back({{"stage", s.stage}, {"columns", columns}});
  }
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
} catch (const nlohmann::json::exception& e) {
  return nlohmann::json{{"error", fmt::format("the check request cannot be read: {}", e.what())}}.dump(
      -1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace millrace
