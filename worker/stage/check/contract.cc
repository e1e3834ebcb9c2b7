#include "worker/stage/check/contract.h"

#include <fmt/format.h>

#include <algorithm>

#include "worker/stage/exact_text.h"

namespace millrace {

Result<std::string> CanonicalType(duck::Connection& connection, std::string_view type) {
  // Only what a type is written with, so that the text stays inside the CAST.
  const bool plain = !type.empty() && type.find_first_of(";-/'\\") == std::string_view::npos;
  if (plain) {
    const auto columns = connection.Describe(fmt::format("SELECT CAST(NULL AS {}) AS value", type));
    if (columns && columns->size() == 1 && columns->front().name == "value") return columns->front().type;
  }
  return Fail(ErrorCode::kInvalidArgument, "there is no type '{}'", type);
}

Result<ContractPlan> PlanContract(duck::Connection& connection, const std::vector<ColumnSpec>& actual,
                                  const ContractSpec& contract) {
  ContractPlan plan{.columns = actual, .violation = {}, .select_list = {}, .casts = false};
  std::vector<std::string> cast_to(actual.size());
  std::string cases;
  for (const auto& wanted : contract.columns) {
    const auto found = std::find_if(actual.begin(), actual.end(), [&](const ColumnSpec& c) { return c.name == wanted.name; });
    if (found == actual.end()) {
      std::string names;
      for (const auto& c : actual) names += (names.empty() ? "" : ", ") + c.name;
      return Fail(ErrorCode::kInvalidArgument, "contract: there is no column '{}' among {}", wanted.name, names);
    }
    const auto at = static_cast<std::size_t>(found - actual.begin());
    const std::string name = duck::QuoteName(wanted.name);
    MILLRACE_TRY_ASSIGN(const std::string type, CanonicalType(connection, wanted.type.empty() ? found->type : wanted.type));
    plan.columns[at].not_null = wanted.not_null;
    if (wanted.not_null) {
      cases += fmt::format(" WHEN {} IS NULL THEN {}", name, duck::QuoteText(fmt::format("{} is null", wanted.name)));
    }
    if (type == found->type) continue;
    plan.columns[at].type = cast_to[at] = type;
    plan.casts = true;
    const std::string cast = fmt::format("TRY_CAST({} AS {})", name, type);
    const bool text = found->type == "varchar" || found->type == "json";
    const std::string value = found->type == "json" ? fmt::format("({} ->> '$')", name) : name;
    const std::string prefix = duck::QuoteText(fmt::format("{} is not a {}: ", wanted.name, type));
    const std::string unfit =
        text ? fmt::format("{} IS NULL", cast) : fmt::format("TRY_CAST({} AS {}) IS DISTINCT FROM {}", cast, found->type, name);
    cases += fmt::format(" WHEN {} IS NOT NULL AND {} THEN {} || CAST({} AS VARCHAR)", name, unfit, prefix, name);
    if (text && (IsExactType(type) || IsTemporalType(type))) {
      cases += fmt::format(" WHEN {} THEN {} || CAST({} AS VARCHAR) || {}", TextLosesSql(value, type), prefix, name,
                           duck::QuoteText(LossAdvice(type)));
    }
  }
  if (!cases.empty()) plan.violation = fmt::format("CASE{} END", cases);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const std::string name = duck::QuoteName(actual[i].name);
    plan.select_list += i == 0 ? "" : ", ";
    plan.select_list += cast_to[i].empty() ? name : fmt::format("CAST({} AS {}) AS {}", name, cast_to[i], name);
  }
  return plan;
}

}  // namespace millrace
