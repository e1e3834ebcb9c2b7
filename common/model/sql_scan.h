// What one SQL text refers to, found by a tokenizer: strings, quoted identifiers, dollar quotes and comments are understood,
// so nothing inside them counts. Not a parser: the database has the last word on syntax.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

struct SqlReference {
  std::string name;        // tables: lower case (identifiers ignore case); parameters: without the $
  std::size_t offset = 0;  // bytes from the start of the text
  std::size_t length = 0;  // bytes in the text
  friend bool operator==(const SqlReference&, const SqlReference&) = default;
};

struct SqlProblem {
  std::size_t offset = 0;
  std::string message;
};

struct SqlScan {
  int statements = 0;                 // not counting empty ones between semicolons
  std::string first_word;             // of the first statement, lower case; a punctuation mark if it is no word
  std::vector<SqlReference> tables;   // unqualified names in table positions that no CTE in scope defines; first use of each
  std::vector<SqlReference> params;   // $name; first use of each
  std::vector<SqlReference> files;    // string literals in table positions (from 'x.csv')
  std::optional<SqlProblem> problem;  // an unterminated string, comment or parenthesis, or a `?` parameter
};

// Pure; linear in the text.
SqlScan ScanSql(std::string_view sql);

}  // namespace millrace
