#include "worker/stage/check/type_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>

#include "common/base/suggest.h"
#include "common/model/lake.h"
#include "common/model/pipeline_json.h"
#include "worker/stage/check/checks.h"
#include "worker/stage/check/contract.h"
#include "worker/stage/extract/extract.h"
#include "worker/stage/extract/sources.h"
#include "worker/stage/lake_writer.h"

namespace millrace {
namespace {

constexpr std::size_t kColumnsShown = 20;
constexpr const char* kTypeHelp = "for example text, bigint, double, decimal(12,2), date, timestamp or boolean";

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

// Bytes of the word at `offset`: a name, a quoted name or text, else one.
std::size_t WordLength(std::string_view sql, std::size_t offset) {
  if (offset >= sql.size()) return 1;
  const char first = sql[offset];
  if (first == '"' || first == '\'') {
    const std::size_t end = sql.find(first, offset + 1);
    return end == std::string_view::npos ? 1 : end + 1 - offset;
  }
  std::size_t end = offset;
  while (end < sql.size() && (std::isalnum(static_cast<unsigned char>(sql[end])) != 0 || sql[end] == '_')) ++end;
  return std::max<std::size_t>(1, end - offset);
}

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

// In SQL, and so in checks, the case of a name does not matter; in keys and contracts it does.
enum class Case : bool { kExact, kIgnored };
bool Has(const std::vector<ColumnSpec>& columns, std::string_view name, Case sensitivity) {
  return std::any_of(columns.begin(), columns.end(), [&](const ColumnSpec& c) {
    return sensitivity == Case::kExact ? c.name == name : Lower(c.name) == Lower(name);
  });
}

std::string ColumnHelp(std::string_view wrong, const std::vector<ColumnSpec>& columns) {
  std::vector<std::string_view> names;
  for (const auto& c : columns) names.push_back(c.name);
  if (const auto near = Suggest(wrong, names)) return fmt::format("did you mean '{}'?", *near);
  std::string list;
  for (std::size_t i = 0; i < std::min(names.size(), kColumnsShown); ++i)
    list += fmt::format("{}{}", i == 0 ? "" : ", ", names[i]);
  return fmt::format("its columns are: {}{}", list, names.size() > kColumnsShown ? ", ..." : "");
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
          {.stage = {}, .code = "internal_error", .message = restricted.error().message, .help = {}, .place = {}, .part = {}});
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
  void Add(const StageSpec& stage, std::string code, std::string message, std::string help, StagePart part,
           SourcePlace place = {}) {
    out_.problems.push_back({.stage = stage.name,
                             .code = std::move(code),
                             .message = std::move(message),
                             .help = std::move(help),
                             .place = place,
                             .part = std::move(part)});
  }

  void AddUnknownColumn(const StageSpec& stage, std::string_view what, std::string_view name, std::string_view of,
                        const std::vector<ColumnSpec>& columns, StagePart part) {
    Add(stage, "unknown_column", fmt::format("{}: stage '{}' has no column '{}'", what, of, name), ColumnHelp(name, columns),
        std::move(part));
  }

  // The engine's complaint about `sql`, in which the text that `part` leads to begins at `begin`.
  void AddSqlError(const StageSpec& stage, std::string code, std::string_view sql, std::size_t begin, std::size_t size,
                   const std::string& message, StagePart part) {
    const duck::SqlError& detail = connection_.last_error();
    std::string help;
    if (detail.type == "Permission")
      help = "files are read by stages with extract: { from: file, path: ... }; name such a stage here";
    for (std::size_t i = 0; i < detail.candidates.size(); ++i)
      help += fmt::format("{}'{}'{}", i == 0 ? "did you mean " : " or ", detail.candidates[i],
                          i + 1 == detail.candidates.size() ? "?" : "");
    SourcePlace place;
    if (detail.position && *detail.position >= begin && *detail.position <= begin + size) {
      const std::string_view text = sql.substr(begin, size);
      part.offset = *detail.position - begin;
      part.length = WordLength(text, *part.offset);
      place = PlaceIn(text, *part.offset);
    }
    std::string text = message;
    if (const std::size_t repeated = text.find("! Candidate bindings: "); repeated != std::string::npos && !help.empty())
      text.resize(repeated);
    Add(stage, std::move(code), std::move(text), help, std::move(part), place);
  }
  void AddSqlError(const StageSpec& stage, std::string_view sql, const Error& error) {
    AddSqlError(stage, "sql_error", sql, 0, sql.size(), error.message, {.path = {"transform"}});
  }

  // The stage's rows become an empty table, for its own checks and for the stages that read it.
  void Finish(const StageSpec& stage, std::vector<ColumnSpec> columns) {
    if (stage.contract) {
      if (!ContractFits(stage, columns)) return;
      auto plan = PlanContract(connection_, columns, *stage.contract);
      if (!plan) return Add(stage, "contract", plan.error().message, {}, {.path = {"contract"}});
      columns = std::move(plan->columns);
    }
    std::string list;
    for (const auto& c : columns) list += fmt::format("{}{} {}", list.empty() ? "" : ", ", duck::QuoteName(c.name), c.type);
    const auto made = connection_.Execute(fmt::format("CREATE TEMP TABLE {} ({})", duck::QuoteName(stage.name), list));
    if (!made) return Add(stage, "unknown_type", made.error().message, {}, {});
    CheckChecks(stage, stage.name, columns);
    columns_[stage.name] = columns;
    out_.stages.push_back({.stage = stage.name, .columns = std::move(columns)});
  }

  bool ContractFits(const StageSpec& stage, const std::vector<ColumnSpec>& columns) {
    const std::size_t before = out_.problems.size();
    for (const auto& c : stage.contract->columns) {
      if (!Has(columns, c.name, Case::kExact)) {
        AddUnknownColumn(stage, "contract", c.name, stage.name, columns, {.path = {"contract", c.name}, .key = true});
      } else if (const auto type = CanonicalType(connection_, c.type); !type) {
        Add(stage, "unknown_type", fmt::format("contract: column '{}': {}", c.name, type.error().message), kTypeHelp,
            {.path = {"contract", c.name}});
      }
    }
    return out_.problems.size() == before;
  }

  // `of`: the stage whose rows are checked, a table by now.
  void CheckChecks(const StageSpec& stage, const std::string& of, const std::vector<ColumnSpec>& columns) {
    for (std::size_t i = 0; i < stage.checks.size(); ++i) {
      const CheckSpec& check = stage.checks[i];
      const std::string kind(Name(check.kind));
      const StagePart part{.path = {"checks", fmt::format("{}", i), kind}};
      bool fits = true;
      for (std::size_t c = 0; c < check.columns.size(); ++c) {
        if (Has(columns, check.columns[c], Case::kIgnored)) continue;
        StagePart word = part;
        word.path.push_back(check.kind == CheckKind::kAcceptedValues ? "column" : fmt::format("{}", c));
        AddUnknownColumn(stage, "check " + kind, check.columns[c], of, columns, std::move(word));
        fits = false;
      }
      const std::string sql = OffendersSql(duck::QuoteName(of), check);
      if (!fits || sql.empty()) continue;
      if (const auto described = connection_.Describe(sql); !described) {
        constexpr std::string_view kBefore = "CAST((";  // what OffendersSql writes before an expression
        const std::size_t at =
            check.kind == CheckKind::kExpression ? sql.find(std::string(kBefore) + check.expression) : sql.size();
        AddSqlError(stage, "invalid_check", sql, std::min(at, sql.size()) + kBefore.size(), check.expression.size(),
                    fmt::format("check {}: {}", kind, described.error().message), part);
      }
    }
  }

  // What a user sees of a source that cannot be read as declared, at the word that is to blame.
  void AddSourceError(const StageSpec& stage, const SourceFiles& sources, const std::string& pinned,
                      const StageFailure& error) {
    const auto& spec = std::get<ExtractSpec>(stage.work);
    const std::size_t before = out_.problems.size();
    for (const auto& [name, value] : spec.options) {
      if (const auto fits = CheckOptions(sources.format, {{name, value}}); !fits)
        Add(stage, error.error_class, fits.error().message, {}, {.path = {"extract", "options", name}});
    }
    ExtractSpec bare = spec;
    bare.columns.clear();
    const auto actual = spec.columns.empty() || out_.problems.size() > before || sources.paths.empty()
                            ? StageOutcome<PinnedSchema>(PinnedSchema{})
                            : ResolveSchema(connection_, sources, bare, pinned, nullptr);
    for (const auto& c : spec.columns) {
      if (!actual || actual->columns.empty()) break;
      if (!Has(actual->columns, c.name, Case::kExact)) {
        Add(stage, error.error_class, fmt::format("the source has no column '{}'", c.name), ColumnHelp(c.name, actual->columns),
            {.path = {"extract", "columns", c.name}, .key = true});
      } else if (const auto type = CanonicalType(connection_, c.type); !c.type.empty() && !type) {
        Add(stage, "unknown_type", fmt::format("column '{}': {}", c.name, type.error().message), kTypeHelp,
            {.path = {"extract", "columns", c.name}});
      }
    }
    if (out_.problems.size() == before) Add(stage, error.error_class, error.message, {}, {.path = {"extract", "path"}});
  }

  void SniffExtract(const StageSpec& stage) {
    const auto& spec = std::get<ExtractSpec>(stage.work);
    const std::string pinned = fmt::format("{}/{}", request_.lake, PinnedSchemaPath(request_.org, pipeline_.name, stage.name));
    auto sources = FindSources(spec, request_.base_dir);
    const auto stored = ReadPinnedSchema(pinned);
    const bool is_pinned = stored && stored->has_value();
    if (!sources) {
      Add(stage, sources.error().error_class, sources.error().message, {}, {.path = {"extract", "path"}});
      // A pinned schema is enough to check the stages that read this one.
      if (!is_pinned || sources.error().error_class != "missing_file") return;
    }
    const SourceFiles files = sources ? *sources : SourceFiles{.paths = {}, .format = spec.format};
    auto schema = ResolveSchema(connection_, files, spec, pinned, nullptr);
    if (!schema && !sources) return;  // without a file its format may be unknown
    if (!schema) return AddSourceError(stage, files, pinned, schema.error());
    if ((spec.copy || stage.contract) && !KeptByLake(stage, schema->columns, {.path = {"extract"}})) return;
    sniffed_[stage.name] = std::move(schema->columns);
  }

  void CheckTransform(const StageSpec& stage) {
    const auto& spec = std::get<TransformSpec>(stage.work);
    auto columns = connection_.Describe(spec.sql, request_.params);
    if (!columns) return AddSqlError(stage, spec.sql, columns.error());
    std::map<std::string, std::string> names;  // by their lower case: case does not tell columns apart
    for (const auto& c : *columns) {
      const auto [other, is_new] = names.emplace(Lower(c.name), c.name);
      if (is_new) continue;
      return Add(stage, "duplicate_column",
                 other->second == c.name
                     ? fmt::format("two columns are named '{}'", c.name)
                     : fmt::format("two columns are named '{}' and '{}'; case does not matter", other->second, c.name),
                 "give one of them another name with AS", {.path = {"transform"}});
    }
    auto published = connection_.Describe(PublishSql(spec.sql, *columns), request_.params);
    if (!published) return AddSqlError(stage, spec.sql, published.error());
    if (!KeptByLake(stage, *columns, {.path = {"transform"}})) return;
    Finish(stage, std::move(*published));
  }

  bool KeptByLake(const StageSpec& stage, const std::vector<ColumnSpec>& columns, StagePart part) {
    const auto kept = RequireLakeTypes(columns);
    if (!kept) Add(stage, "unsupported_type", kept.error().message, {}, std::move(part));
    return kept.has_value();
  }

  void CheckLoad(const StageSpec& stage) {
    const auto& spec = std::get<LoadSpec>(stage.work);
    const auto found = columns_.find(spec.from);
    if (found == columns_.end()) return;
    for (std::size_t i = 0; i < spec.key.size(); ++i) {
      if (!Has(found->second, spec.key[i], Case::kExact))
        AddUnknownColumn(stage, "key", spec.key[i], spec.from, found->second, {.path = {"load", "key", fmt::format("{}", i)}});
    }
    CheckChecks(stage, spec.from, found->second);
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
    nlohmann::ordered_json problem = {{"stage", p.stage},    {"code", p.code},       {"message", p.message},
                                      {"help", p.help},      {"line", p.place.line}, {"column", p.place.column},
                                      {"path", p.part.path}, {"key", p.part.key},    {"length", p.part.length}};
    if (p.part.offset) problem["offset"] = *p.part.offset;
    out["problems"].push_back(std::move(problem));
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
