#include "worker/stage/extract/declared_casts.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "worker/stage/check/contract.h"
#include "worker/stage/exact_text.h"

namespace millrace {
namespace {

constexpr const char* kSourceColumn = "_millrace_source_file";

std::string Rows(const std::vector<std::string>& paths, const std::string& source_column = {}) {
  return "SELECT * FROM " + ReaderCall(paths, {.format = FileFormat::kParquet, .source_column = source_column});
}

}  // namespace

StageOutcome<DeclaredCasts> PlanCasts(duck::Connection& connection, const std::vector<ColumnSpec>& of_files,
                                      const std::vector<ColumnSpec>& wanted) {
  ContractSpec contract;
  for (const auto& c : wanted) {
    const auto same = [&](const ColumnSpec& other) { return other.name == c.name && other.type == c.type; };
    if (std::none_of(of_files.begin(), of_files.end(), same)) contract.columns.push_back({.name = c.name, .type = c.type});
  }
  if (contract.columns.empty()) return DeclaredCasts{};
  MILLRACE_TRY_ASSIGN(ContractPlan plan, PlanContract(connection, of_files, contract));
  return DeclaredCasts{.none = false, .violation = std::move(plan.violation), .select_list = std::move(plan.select_list)};
}

StageOutcome<void> FailOnLossyCasts(duck::Connection& connection, const std::vector<std::string>& paths,
                                    const DeclaredCasts& casts) {
  if (casts.none) return {};
  MILLRACE_TRY_ASSIGN(const duck::Table count,
                      connection.Query(fmt::format("SELECT count({}) FROM ({})", casts.violation, Rows(paths))));
  if (count.Int() == 0) return {};
  for (const auto& path : paths) {
    MILLRACE_TRY_ASSIGN(const duck::Table first,
                        connection.Query(fmt::format("SELECT * FROM (SELECT {} AS \"reason of it\", row_number() OVER () AS "
                                                     "\"record number\" FROM ({})) WHERE \"reason of it\" IS NOT NULL LIMIT 1",
                                                     casts.violation, Rows({path}))));
    if (first.rows.empty()) continue;
    return std::unexpected(StageFailure(
        "bad_value", fmt::format("{}: record {}: {}{}", std::filesystem::path(path).filename().string(), first.Int(1),
                                 first.Text(0), count.Int() == 1 ? "" : fmt::format(" ({} such rows in all)", count.Int()))));
  }
  return std::unexpected(StageFailure("source_changed", "a source changed while it was read", true));
}

ExactRows SplitLossyCasts(const std::vector<std::string>& paths, const std::vector<ColumnSpec>& of_files,
                          const DeclaredCasts& casts) {
  return {.kept = fmt::format("SELECT {} FROM ({}) WHERE {} IS NULL", casts.select_list, Rows(paths), casts.violation),
          .rejects = fmt::format("SELECT {0} AS reason, {1} AS source, CAST(NULL AS BIGINT) AS line, {2} AS row FROM ({3}) "
                                 "WHERE {0} IS NOT NULL",
                                 casts.violation, kSourceColumn, RowJson(of_files), Rows(paths, kSourceColumn))};
}

}  // namespace millrace
