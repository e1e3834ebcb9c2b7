#include "common/ledger/postgres_combine.h"

#include <fmt/format.h>

#include <utility>

namespace millrace::ledger {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// `sql` with `by` added to the number of each parameter. The ledger's texts have no dollar sign elsewhere.
void AppendShifted(std::string& to, std::string_view sql, std::size_t by) {
  for (std::size_t at = 0; at < sql.size();) {
    if (sql[at] != '$') {
      to += sql[at++];
      continue;
    }
    std::size_t number = 0;
    for (++at; at < sql.size() && IsDigit(sql[at]); ++at) number = number * 10 + static_cast<std::size_t>(sql[at] - '0');
    fmt::format_to(std::back_inserter(to), "${}", number + by);
  }
}

std::string TextOf(const PgStatement& main, std::span<const PgStatement> parts) {
  std::string text = "with ";
  std::size_t shift = main.params.size();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    text += fmt::format("{}p{} as (", i > 0 ? ", " : "", i);
    AppendShifted(text, parts[i].sql, shift);
    text += ')';
    shift += parts[i].params.size();
  }
  return text.append(" ").append(main.sql);
}

}  // namespace

std::optional<PgStatement> StatementCombiner::Combine(PgStatement& main, std::span<PgStatement> parts) {
  if (parts.empty() || parts.size() > kPartsMax) return std::nullopt;
  std::vector<const char*> key{main.sql.data()};
  std::size_t bytes = main.params.bytes();
  for (const PgStatement& part : parts) {
    key.push_back(part.sql.data());
    bytes += part.params.bytes();
  }
  if (bytes > kBytesMax) return std::nullopt;
  auto known = texts_.find(key);
  if (known == texts_.end()) {
    if (texts_.size() >= kTextsMax) return std::nullopt;
    known = texts_.emplace(std::move(key), TextOf(main, parts)).first;
  }
  PgStatement combined{known->second, std::move(main.params)};
  for (const PgStatement& part : parts) combined.params.Append(part.params);
  return combined;
}

}  // namespace millrace::ledger
