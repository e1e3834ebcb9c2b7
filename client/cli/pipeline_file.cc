#include "client/cli/pipeline_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "client/cli/stage_check.h"
#include "common/base/limits.h"
#include "common/base/suggest.h"
#include "common/model/pipeline_json.h"
#include "common/model/pipeline_parser.h"
#include "common/model/pipeline_places.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

// Some value of the type: types do not depend on which.
std::string SampleOf(const std::string& type) {
  if (type == "date") return "2000-01-01";
  if (type == "timestamp") return "2000-01-01 00:00:00";
  if (type == "boolean") return "true";
  return type == "bigint" || type == "double" ? "1" : "";
}

Diagnostic ToDiagnostic(const PipelineFile& file, const PipelinePlaces& places, const Json& problem) {
  Diagnostic d;
  d.file = file.path;
  d.code = problem.at("code").get<std::string>();
  const std::string stage = problem.at("stage").get<std::string>();
  d.message = fmt::format("stage '{}': {}", stage, problem.at("message").get<std::string>());
  d.help = problem.at("help").get<std::string>();
  StagePart part{.path = problem.at("path").get<std::vector<std::string>>(), .key = problem.at("key").get<bool>()};
  if (problem.contains("offset")) part.offset = problem.at("offset").get<std::size_t>();
  part.length = problem.at("length").get<std::size_t>();
  if (const auto mark = places.Find(stage, part)) {
    d.place = mark->place;
    d.length = mark->length;
  }
  return d;
}

// What all functions of a file say when it has errors.
std::unexpected<Error> Refused(std::vector<Diagnostic> found, const std::string& source, std::vector<Diagnostic>* diagnostics) {
  Error error{ErrorCode::kRejected, RenderAll(found, source)};
  if (diagnostics != nullptr) *diagnostics = std::move(found);
  return std::unexpected(std::move(error));
}

}  // namespace

Result<PipelineFile> ReadPipelineFile(const std::string& path, std::vector<Diagnostic>* diagnostics) {
  std::error_code ec;
  const auto kind = std::filesystem::status(path, ec).type();
  if (ec || kind == std::filesystem::file_type::not_found) return Fail(ErrorCode::kNotFound, "{}: no such file", path);
  if (kind != std::filesystem::file_type::regular) return Fail(ErrorCode::kInvalidArgument, "{}: not a regular file", path);
  if (const auto bytes = std::filesystem::file_size(path, ec); !ec && bytes > kPipelineFileBytesMax) {
    Diagnostic large;
    large.file = path;
    large.code = "too_large";
    large.message = fmt::format("the file has {} bytes, over the limit of {} bytes", bytes, kPipelineFileBytesMax);
    return Refused({std::move(large)}, "", diagnostics);
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return Fail(ErrorCode::kInvalidArgument, "{}: cannot be read: {}", path, std::strerror(errno));
  PipelineFile file;
  file.path = path;
  file.source.assign(std::istreambuf_iterator<char>(in), {});
  file.base_dir = std::filesystem::absolute(path, ec).lexically_normal().parent_path();
  auto parsed = ParsePipeline(file.source, path);
  if (!parsed.diagnostics.empty()) return Refused(std::move(parsed.diagnostics), file.source, diagnostics);
  file.pipeline = std::move(*parsed.pipeline);
  return file;
}

Result<std::map<std::string, std::string>> ParseParams(const std::vector<std::string>& params) {
  std::map<std::string, std::string> out;
  for (const std::string& param : params) {
    const std::size_t equals = param.find('=');
    if (equals == std::string::npos || equals == 0)
      return Fail(ErrorCode::kInvalidArgument, "-p '{}' is not of the form name=value", param);
    if (!out.emplace(param.substr(0, equals), param.substr(equals + 1)).second)
      return Fail(ErrorCode::kInvalidArgument, "-p {}: given twice", param.substr(0, equals));
  }
  return out;
}

std::map<std::string, std::string> WithSamples(const Pipeline& pipeline, std::map<std::string, std::string> params) {
  for (const ParamSpec& p : pipeline.params)
    if (p.required) params.try_emplace(p.name, SampleOf(p.type));
  return params;
}

Result<void> CheckConnections(const PipelineFile& file, const std::vector<ConnectionSpec>& connections,
                              std::vector<Diagnostic>* diagnostics) {
  std::vector<std::string_view> names;
  for (const ConnectionSpec& c : connections) names.push_back(c.name);
  std::vector<Diagnostic> found;
  std::optional<PipelinePlaces> places;
  for (const StageSpec& stage : file.pipeline.stages) {
    const auto* load = std::get_if<LoadSpec>(&stage.work);
    if (load == nullptr || load->to == "file" || std::ranges::find(names, load->to) != names.end()) continue;
    Diagnostic d;
    d.file = file.path;
    d.code = "unknown_connection";
    d.message = fmt::format("stage '{}': there is no connection '{}'", stage.name, load->to);
    const auto near = Suggest(load->to, names);
    d.help = near ? fmt::format("did you mean '{}'?", *near)
                  : fmt::format("the configuration has: {}; add connections.{}", fmt::join(names, ", "), load->to);
    if (!places) places.emplace(file.source);
    const Mark mark = places->Find(stage.name, {.path = {"load", "to"}}).value_or(Mark{stage.place});
    d.place = mark.place;
    d.length = mark.length;
    found.push_back(std::move(d));
  }
  if (found.empty()) return {};
  return Refused(std::move(found), file.source, diagnostics);
}

std::string TypeCheckQuestion(const PipelineFile& file, const std::map<std::string, std::string>& params,
                              const std::string& lake, OrgId org) {
  Json request;
  request["pipeline"] = Json::parse(ToJson(file.pipeline));
  request["base_dir"] = file.base_dir;
  request["lake"] = lake;
  request["params"] = WithSamples(file.pipeline, params);
  request["org"] = org.value();
  return request.dump();
}

Result<std::vector<StageSchema>> TypeCheck(const PipelineFile& file, const std::map<std::string, std::string>& params,
                                           const std::string& lake, OrgId org, MonoTime deadline,
                                           std::vector<Diagnostic>* diagnostics) {
  MILLRACE_TRY_ASSIGN(const std::string text, CallStageCheck(TypeCheckQuestion(file, params, lake, org), deadline));
  return ReadTypeCheck(file, text, diagnostics);
}

Result<std::vector<StageSchema>> ReadTypeCheck(const PipelineFile& file, const std::string& text,
                                               std::vector<Diagnostic>* diagnostics) {
  const Json answer = Json::parse(text, nullptr, false);
  if (!answer.is_object()) return Fail(ErrorCode::kCorrupt, "the type check's answer is no JSON object");
  if (answer.contains("error")) return Fail(ErrorCode::kInvalidArgument, "{}", answer["error"].get<std::string>());
  try {
    if (!answer.at("problems").empty()) {
      const PipelinePlaces places(file.source);
      std::vector<Diagnostic> found;
      for (const Json& problem : answer.at("problems")) found.push_back(ToDiagnostic(file, places, problem));
      std::ranges::stable_sort(found, {}, [](const Diagnostic& d) { return std::pair{d.place.line, d.place.column}; });
      return Refused(std::move(found), file.source, diagnostics);
    }
    std::vector<StageSchema> schemas;
    for (const Json& stage : answer.at("stages")) {
      StageSchema schema{.stage = stage.at("stage").get<std::string>(), .columns = {}};
      for (const Json& column : stage.at("columns"))
        schema.columns.push_back({.name = column.at("name").get<std::string>(),
                                  .type = column.at("type").get<std::string>(),
                                  .not_null = column.at("not_null").get<bool>()});
      schemas.push_back(std::move(schema));
    }
    return schemas;
  } catch (const Json::exception& e) {
    return Fail(ErrorCode::kCorrupt, "the type check's answer: {}", e.what());
  }
}

std::string FileErrorsJson(const std::string& file, const Error& error, const std::vector<Diagnostic>& diagnostics,
                           int indent) {
  Json errors = Json::array();
  const auto number = [](int n) { return n > 0 ? Json(n) : Json(nullptr); };
  const auto text = [](const std::string& t) { return t.empty() ? Json(nullptr) : Json(t); };
  for (const Diagnostic& d : diagnostics)
    errors.push_back({{"file", d.file},
                      {"line", number(d.place.line)},
                      {"column", number(d.place.column)},
                      {"length", number(d.place.line > 0 ? d.length : 0)},
                      {"code", d.code},
                      {"message", d.message},
                      {"suggestion", text(d.help)}});
  if (diagnostics.empty())
    errors.push_back({{"file", file},
                      {"line", nullptr},
                      {"column", nullptr},
                      {"length", nullptr},
                      {"code", Name(error.code)},
                      {"message", error.message},
                      {"suggestion", nullptr}});
  const Json document{{"ok", false}, {"errors", std::move(errors)}};
  return document.dump(indent, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace millrace::cli
