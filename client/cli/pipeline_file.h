// A pipeline file as a command reads it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/result.h"
#include "common/model/pipeline.h"
#include "common/model/stage_task.h"

namespace millrace::cli {

struct PipelineFile {
  std::string path;      // as given
  std::string source;    // the text
  std::string base_dir;  // absolute folder of the file
  Pipeline pipeline;
};

// kNotFound: no such file. kRejected: the file has errors; the message is all of them, rendered with their places,
// and ends with a newline. They are also put into `diagnostics`, where given; so do the functions below.
Result<PipelineFile> ReadPipelineFile(const std::string& path, std::vector<Diagnostic>* diagnostics = nullptr);

// -p name=value arguments. kInvalidArgument names the one that is not of that form or comes twice.
Result<std::map<std::string, std::string>> ParseParams(const std::vector<std::string>& params);

// `params` and, for each required parameter that it lacks, some value of its type: types do not depend on which.
std::map<std::string, std::string> WithSamples(const Pipeline& pipeline, std::map<std::string, std::string> params);

// For the embedded form, whose worker has this configuration: every load names one of `connections` or `file`. kRejected as
// ReadPipelineFile.
Result<void> CheckConnections(const PipelineFile& file, const std::vector<ConnectionSpec>& connections,
                              std::vector<Diagnostic>* diagnostics = nullptr);

struct StageSchema {
  std::string stage;
  std::vector<ColumnSpec> columns;
};
// Types, columns and SQL of the whole graph, without data, by millrace-stage. A required parameter that is not given stands
// for some value of its type. kRejected: rendered complaints, which end with a newline.
Result<std::vector<StageSchema>> TypeCheck(const PipelineFile& file, const std::map<std::string, std::string>& params,
                                           const std::string& lake, OrgId org, MonoTime deadline,
                                           std::vector<Diagnostic>* diagnostics = nullptr);
// The two halves of TypeCheck, for who asks in another way: the question, and what the answer says.
std::string TypeCheckQuestion(const PipelineFile& file, const std::map<std::string, std::string>& params,
                              const std::string& lake, OrgId org);
Result<std::vector<StageSchema>> ReadTypeCheck(const PipelineFile& file, const std::string& answer,
                                               std::vector<Diagnostic>* diagnostics = nullptr);

// What `check` and `plan` print as JSON when they fail: {"ok": false, "errors": [{"file", "line", "column", "length", "code",
// "message", "suggestion"}]}. Without diagnostics, `error` itself. Ends with a newline; indent -1: one line.
std::string FileErrorsJson(const std::string& file, const Error& error, const std::vector<Diagnostic>& diagnostics, int indent);

}  // namespace millrace::cli
