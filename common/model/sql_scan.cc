#include "common/model/sql_scan.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_set>
#include <utility>

namespace millrace {
namespace {

enum class TokenKind : std::uint8_t { kWord, kQuoted, kString, kNumber, kParam, kMark };
struct SqlToken {
  TokenKind kind;
  std::string text;  // word: lower case; quoted: lower case without quotes; param: its name; mark: one character
  std::size_t offset;
  std::size_t length;
};

bool WordStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool Digit(char c) { return c >= '0' && c <= '9'; }
bool WordPart(char c) { return WordStart(c) || Digit(c); }
std::string Lower(std::string_view s) {
  std::string out(s);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

class Tokenizer {
 public:
  explicit Tokenizer(std::string_view sql) : sql_(sql) {}

  std::vector<SqlToken> Run(std::optional<SqlProblem>& problem) {
    while (at_ < sql_.size() && !problem_) Step();
    problem = std::move(problem_);
    return std::move(tokens_);
  }

 private:
  char Peek(std::size_t ahead = 0) const { return at_ + ahead < sql_.size() ? sql_[at_ + ahead] : '\0'; }

  void Step() {
    const char c = Peek();
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v') {
      ++at_;
    } else if (c == '-' && Peek(1) == '-') {
      at_ = std::min(sql_.find('\n', at_), sql_.size());
    } else if (c == '/' && Peek(1) == '*') {
      BlockComment();
    } else if (c == '\'') {
      Quoted('\'', TokenKind::kString, false);
    } else if (c == '"') {
      Quoted('"', TokenKind::kQuoted, false);
    } else if ((c == 'e' || c == 'E') && Peek(1) == '\'') {
      ++at_;
      Quoted('\'', TokenKind::kString, true);
    } else if (c == '$') {
      Dollar();
    } else if (WordStart(c)) {
      Word();
    } else if (Digit(c) || (c == '.' && Digit(Peek(1)))) {
      Number();
    } else {
      if (c == '?' && !problem_) problem_ = SqlProblem{at_, "parameters are written $name, not ?"};
      Add(TokenKind::kMark, std::string(1, c), at_, 1);
      ++at_;
    }
  }

  void Add(TokenKind kind, std::string text, std::size_t offset, std::size_t length) {
    tokens_.push_back({kind, std::move(text), offset, length});
  }

  void BlockComment() {
    const std::size_t start = at_;
    int depth = 0;
    do {
      if (at_ >= sql_.size()) {
        problem_ = SqlProblem{start, "this comment is not closed"};
        return;
      }
      if (Peek() == '/' && Peek(1) == '*') {
        ++depth, at_ += 2;
      } else if (Peek() == '*' && Peek(1) == '/') {
        --depth, at_ += 2;
      } else {
        ++at_;
      }
    } while (depth > 0);
  }

  void Quoted(char quote, TokenKind kind, bool backslash) {
    const std::size_t start = at_++;
    std::string text;
    while (at_ < sql_.size()) {
      if (backslash && Peek() == '\\' && at_ + 1 < sql_.size()) {
        text += sql_[at_ + 1];
        at_ += 2;
      } else if (Peek() != quote) {
        text += sql_[at_++];
      } else if (Peek(1) == quote) {
        text += quote;
        at_ += 2;
      } else {
        ++at_;
        return Add(kind, kind == TokenKind::kQuoted ? Lower(text) : text, start, at_ - start);
      }
    }
    problem_ = SqlProblem{start, quote == '"' ? "this quoted name is not closed" : "this string is not closed"};
  }

  // $name, $1, $$text$$ or $tag$text$tag$.
  void Dollar() {
    std::size_t end = at_ + 1;
    while (end < sql_.size() && WordPart(sql_[end])) ++end;
    const bool tag = end < sql_.size() && sql_[end] == '$' && !(end > at_ + 1 && Digit(sql_[at_ + 1]));
    if (tag) {
      const std::string_view mark = sql_.substr(at_, end + 1 - at_);
      const auto close = sql_.find(mark, end + 1);
      if (close == std::string_view::npos) {
        problem_ = SqlProblem{at_, "this dollar-quoted string is not closed"};
        return;
      }
      Add(TokenKind::kString, std::string(sql_.substr(end + 1, close - end - 1)), at_, close + mark.size() - at_);
      at_ = close + mark.size();
    } else {
      Add(end == at_ + 1 ? TokenKind::kMark : TokenKind::kParam, std::string(sql_.substr(at_ + 1, end - at_ - 1)), at_,
          end - at_);
      at_ = end;
    }
  }

  void Word() {
    const std::size_t start = at_;
    while (at_ < sql_.size() && (WordPart(sql_[at_]) || sql_[at_] == '$')) ++at_;
    Add(TokenKind::kWord, Lower(sql_.substr(start, at_ - start)), start, at_ - start);
  }

  void Number() {
    const std::size_t start = at_;
    while (at_ < sql_.size() && (WordPart(sql_[at_]) || (sql_[at_] == '.' && Peek(1) != '.'))) ++at_;
    Add(TokenKind::kNumber, std::string(sql_.substr(start, at_ - start)), start, at_ - start);
  }

  std::string_view sql_;
  std::size_t at_ = 0;
  std::vector<SqlToken> tokens_;
  std::optional<SqlProblem> problem_;
};

constexpr std::array<std::string_view, 16> kEndsFrom{"where",   "group", "having", "order",     "limit",  "window",
                                                     "qualify", "union", "except", "intersect", "select", "offset",
                                                     "using",   "fetch", "values", "returning"};
// Functions whose arguments are separated by the word FROM.
constexpr std::array<std::string_view, 5> kFromInside{"extract", "substring", "trim", "overlay", "position"};
bool In(std::string_view word, auto& list) { return std::ranges::find(list, word) != list.end(); }

// One level of parentheses. It sees FROM, JOIN, commas and WITH only as they stand at that level.
enum class Cte : std::uint8_t { kNone, kName, kAs, kBody, kAfter };
struct Level {
  std::size_t open = 0;           // offset of its parenthesis
  bool from_is_argument = false;  // extract(year from x)
  bool fresh = true;              // no token yet
  bool in_from = false;
  bool expect_table = false;
  Cte cte = Cte::kNone;
  bool recursive = false;
  std::string cte_name;
  std::vector<std::string> ctes;  // defined at this level, seen here and deeper
};

class TableFinder {
 public:
  TableFinder(const std::vector<SqlToken>& tokens, SqlScan& out) : tokens_(tokens), out_(out) { levels_.emplace_back(); }

  void Run() {
    for (i_ = 0; i_ < tokens_.size(); ++i_) {
      const SqlToken& t = tokens_[i_];
      if (t.kind == TokenKind::kParam && seen_params_.insert(t.text).second)
        out_.params.push_back({t.text, t.offset, t.length});
      if (levels_.size() == 1) Statement(t);
      Take(t);
    }
    if (levels_.size() > 1 && !out_.problem) out_.problem = SqlProblem{levels_.back().open, "this parenthesis is not closed"};
  }

 private:
  bool Mark(std::size_t i, char c) const {
    return i < tokens_.size() && tokens_[i].kind == TokenKind::kMark && tokens_[i].text[0] == c;
  }
  bool WordAt(std::size_t i, std::string_view word) const {
    return i < tokens_.size() && tokens_[i].kind == TokenKind::kWord && tokens_[i].text == word;
  }

  void Statement(const SqlToken& t) {
    if (t.kind == TokenKind::kMark && t.text == ";") {
      levels_.front() = Level{};
      in_statement_ = false;
      return;
    }
    if (in_statement_) return;
    in_statement_ = true;
    if (out_.statements++ == 0) out_.first_word = t.text;
  }

  void Take(const SqlToken& t) {
    if (t.kind == TokenKind::kMark && t.text == ";") return;
    if (t.kind == TokenKind::kMark && t.text == "(") return Push(t);
    if (t.kind == TokenKind::kMark && t.text == ")") return Pop(t);
    Level& level = levels_.back();
    const bool first = std::exchange(level.fresh, false);
    if (level.cte != Cte::kNone && TakeCte(level, t)) return;
    const bool word = t.kind == TokenKind::kWord;
    if (word && first && t.text == "with") {
      level.cte = Cte::kName;
    } else if (word && t.text == "from" && IsTableFrom(level, first)) {
      level.in_from = level.expect_table = true;
    } else if (word && t.text == "join" && level.in_from) {
      level.expect_table = true;
    } else if (level.expect_table) {
      Table(level, t);
    } else if (t.kind == TokenKind::kMark && t.text == "," && level.in_from) {
      level.expect_table = true;
    } else if (word && In(t.text, kEndsFrom)) {
      EndFrom(level, t);
    }
  }

  // `using (column)` belongs to a join, `using sample` does not; the comma list goes on after the first only.
  void EndFrom(Level& level, const SqlToken& t) {
    if (t.text == "using" && Mark(i_ + 1, '(')) return;
    level.in_from = false;
    if (t.text == "select") level.from_is_argument = false;
  }

  bool IsTableFrom(const Level& level, bool first) const {
    if (level.from_is_argument) return false;
    if (first || i_ == 0) return true;
    const bool distinct = WordAt(i_ - 1, "distinct");
    const bool is_before = i_ >= 2 && (WordAt(i_ - 2, "is") || (i_ >= 3 && WordAt(i_ - 2, "not") && WordAt(i_ - 3, "is")));
    if (distinct && is_before) return false;
    return !Mark(i_ - 1, '.');  // t.from
  }

  // Returns false when the list of CTEs has ended and the token belongs to the query.
  bool TakeCte(Level& level, const SqlToken& t) {
    switch (level.cte) {
      case Cte::kName:
        if (t.kind == TokenKind::kWord && t.text == "recursive") {
          level.recursive = true;
          return true;
        }
        level.cte_name = t.text;
        if (level.recursive) level.ctes.push_back(t.text);
        level.cte = Cte::kAs;
        return true;
      case Cte::kAs:
        if (t.kind == TokenKind::kWord && t.text == "as") level.cte = Cte::kBody;
        return true;
      case Cte::kBody: return true;  // [not] materialized
      case Cte::kAfter:
        if (t.kind == TokenKind::kMark && t.text == ",") {
          level.cte = Cte::kName;
          return true;
        }
        level.cte = Cte::kNone;
        return false;
      case Cte::kNone: return false;
    }
    return false;
  }

  void Push(const SqlToken& t) {
    Level& outer = levels_.back();
    outer.fresh = false;
    Level inner;
    inner.open = t.offset;
    if (outer.expect_table) inner.in_from = inner.expect_table = true;  // a subquery or a join in parentheses
    outer.expect_table = false;
    inner.from_is_argument = i_ > 0 && tokens_[i_ - 1].kind == TokenKind::kWord && In(tokens_[i_ - 1].text, kFromInside);
    levels_.push_back(std::move(inner));
  }

  void Pop(const SqlToken& t) {
    if (levels_.size() == 1) {
      if (!out_.problem) out_.problem = SqlProblem{t.offset, "this parenthesis was never opened"};
      return;
    }
    levels_.pop_back();
    Level& level = levels_.back();
    if (level.cte != Cte::kBody) return;
    if (!level.recursive) level.ctes.push_back(level.cte_name);  // until here its name meant something outside
    level.cte = Cte::kAfter;
  }

  void Table(Level& level, const SqlToken& t) {
    if (t.kind == TokenKind::kString) {
      out_.files.push_back({t.text, t.offset, t.length});
      level.expect_table = false;
      return;
    }
    const bool name = t.kind == TokenKind::kWord || t.kind == TokenKind::kQuoted;
    if (t.kind == TokenKind::kWord && (t.text == "lateral" || t.text == "pivot" || t.text == "unpivot")) {
      if (!EndsTable(i_ + 1)) return;
    }
    if (name && Mark(i_ + 1, ':') && !Mark(i_ + 2, ':')) {  // alias : table
      ++i_;
      return;
    }
    level.expect_table = false;
    if (t.kind == TokenKind::kWord && (t.text == "select" || t.text == "with" || t.text == "values")) {
      level.in_from = false;
      if (t.text == "with") level.cte = Cte::kName;
      return;
    }
    if (!name || Mark(i_ + 1, '(')) return;
    if (Mark(i_ + 1, '.')) {
      while (Mark(i_ + 1, '.') && i_ + 2 < tokens_.size()) i_ += 2;
      return;
    }
    for (const Level& l : levels_)
      if (In(t.text, l.ctes)) return;
    if (seen_tables_.insert(t.text).second) out_.tables.push_back({t.text, t.offset, t.length});
  }

  bool EndsTable(std::size_t i) const { return i >= tokens_.size() || Mark(i, ')') || Mark(i, ',') || Mark(i, ';'); }

  const std::vector<SqlToken>& tokens_;
  SqlScan& out_;
  std::vector<Level> levels_;
  std::unordered_set<std::string> seen_tables_, seen_params_;
  std::size_t i_ = 0;
  bool in_statement_ = false;
};

}  // namespace

SqlScan ScanSql(std::string_view sql) {
  SqlScan scan;
  const std::vector<SqlToken> tokens = Tokenizer(sql).Run(scan.problem);
  TableFinder(tokens, scan).Run();
  return scan;
}

}  // namespace millrace
