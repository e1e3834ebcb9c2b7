#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <set>
#include <utility>

#include "common/model/command_text.h"
#include "common/model/error_classes.h"
#include "common/model/parse_context.h"

namespace millrace {
namespace {

constexpr std::int64_t kRowsMax = std::int64_t{1} << 53;
constexpr const char* kCommandHelp = "write [program, argument, ...], or [sh, -c, \"...\"] for a shell";

class StageParser {
 public:
  StageParser(ParseContext& context, const YamlNode& key, const YamlNode& body)
      : context_(context), key_(key), body_(body), what_(fmt::format("stage '{}'", key.text)) {}

  std::optional<StageSpec> Parse() {
    const bool named = context_.IsName(key_, "stage");
    if (!context_.IsMapping(body_, what_)) return std::nullopt;
    context_.OnlyKeys(body_,
                      {"extract", "transform", "load", "command", "contract", "checks", "retry", "timeout", "deadline", "queue",
                       "priority", "limit_key", "route_by_size", "after"},
                      "a stage");
    stage_.name = key_.text;
    stage_.place = {key_.line, key_.column};
    Work();
    Common();
    if (!named || !has_work_) return std::nullopt;
    return std::move(stage_);
  }

 private:
  const YamlNode* Field(const YamlNode& mapping, std::string_view key) { return mapping.Find(key); }

  void Work() {
    const YamlNode* first = nullptr;
    for (std::size_t i = 0; i < body_.keys.size(); ++i) {
      const YamlNode& key = body_.keys[i];
      if (key.text != "extract" && key.text != "transform" && key.text != "load" && key.text != "command") continue;
      if (first && first->text != key.text) {
        context_.Add(key, "two_kinds", fmt::format("{} is both {} and {}", what_, first->text, key.text),
                     "a stage does one thing: make two stages of it");
        continue;
      }
      if (first) continue;  // a duplicate key: already reported
      first = &key;
      has_work_ = true;
      const YamlNode& value = body_.items[i];
      if (key.text == "extract") Extract(key, value);
      if (key.text == "transform") Transform(key, value);
      if (key.text == "load") Load(key, value);
      if (key.text == "command") Command(key, value);
    }
    if (!first)
      context_.Add(key_, "no_kind", fmt::format("{} says nothing to do", what_), "add extract, transform, load or command");
  }

  void Extract(const YamlNode& key, const YamlNode& node) {
    auto& spec = stage_.work.emplace<ExtractSpec>();
    if (!context_.IsMapping(node, "extract")) return;
    context_.OnlyKeys(node, {"from", "path", "format", "columns", "options", "copy", "allow_empty"}, "extract");
    if (const YamlNode* from = context_.Need(node, key, "from", "extract"))
      if (auto word = context_.OneOf(*from, "extract.from", {"file"})) spec.from = *word;
    if (const YamlNode* path = context_.Need(node, key, "path", "extract")) spec.paths = Paths(*path);
    if (const YamlNode* format = Field(node, "format"))
      if (auto word = context_.OneOf(*format, "extract.format", {"auto", "csv", "tsv", "ndjson", "json", "parquet"}))
        spec.format = *ParseFileFormat(*word);
    if (const YamlNode* columns = Field(node, "columns")) spec.columns = Columns(*columns, "extract.columns");
    if (const YamlNode* options = Field(node, "options")) ExtractOptions(spec, *options);
    if (const YamlNode* copy = Field(node, "copy")) spec.copy = context_.Bool(*copy, "extract.copy").value_or(false);
    if (const YamlNode* empty = Field(node, "allow_empty"))
      spec.allow_empty = context_.Bool(*empty, "extract.allow_empty").value_or(false);
  }

  std::vector<std::string> Paths(const YamlNode& node) {
    std::vector<std::string> paths = context_.TextList(node, "extract.path", true);
    for (const std::string& path : paths) {
      for (std::size_t at = path.find("**"); at != std::string::npos; at = path.find("**", at + 2)) {
        const bool alone = (at == 0 || path[at - 1] == '/') && (at + 2 == path.size() || path[at + 2] == '/');
        if (alone) continue;
        context_.Add(node, "bad_value", fmt::format("extract.path: '{}': '**' stands alone between slashes", path),
                     "write data/**/*.csv for files at any depth, data/*.csv for one folder");
        break;
      }
    }
    return paths;
  }

  std::vector<ColumnSpec> Columns(const YamlNode& node, std::string_view what) {
    std::vector<ColumnSpec> out;
    if (!context_.IsMapping(node, what)) return out;
    if (node.keys.empty())
      context_.Add(node, "bad_value", fmt::format("{} is empty", what), "write column: type, or leave it out");
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      if (node.keys[i].text.empty()) context_.Add(node.keys[i], "bad_name", "a column's name is empty", "write column: type");
      if (const std::size_t parts = BrokenType(node, i); parts > 0) {
        i += parts;
        continue;
      }
      if (auto type = context_.Text(node.items[i], fmt::format("the type of column '{}'", node.keys[i].text)))
        out.push_back({node.keys[i].text, std::move(*type), false});
    }
    return out;
  }

  // `{ amount: decimal(12,2) }`: YAML ends the entry at the comma, and `2)` becomes a key without a value. Complains, and
  // returns how many of the following keys are such parts; 0 if entry `at` is not of this kind.
  std::size_t BrokenType(const YamlNode& node, std::size_t at) {
    const YamlNode& value = node.items[at];
    std::string type = value.text;
    const auto open = [&] { return std::ranges::count(type, '(') - std::ranges::count(type, ')'); };
    if (value.kind != YamlNode::Kind::kScalar || !value.plain || open() <= 0) return 0;
    for (std::size_t i = at + 1; i < node.keys.size() && node.items[i].IsNull(); ++i) {
      type += "," + node.keys[i].text;
      if (open() > 0) continue;
      context_.Add(value, "bad_value",
                   fmt::format("the type of column '{}' has a comma, which ends an entry inside {{ }}", node.keys[at].text),
                   fmt::format("quote it: {{ {}: \"{}\" }}", node.keys[at].text, type));
      return i - at;
    }
    return 0;
  }

  void ExtractOptions(ExtractSpec& spec, const YamlNode& node) {
    if (!context_.IsMapping(node, "extract.options")) return;
    context_.OnlyKeys(node,
                      {"delimiter", "header", "quote", "escape", "null", "skip", "decimal_separator", "dateformat", "encoding"},
                      "extract.options");
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      const std::string& name = node.keys[i].text;
      const YamlNode& value = node.items[i];
      const std::string what = "extract.options." + name;
      if (name == "encoding") {
        if (auto word = context_.OneOf(value, what, {"utf-8", "utf-16", "latin-1"})) spec.options[name] = *word;
      } else if (name == "header") {
        if (auto b = context_.Bool(value, what)) spec.options[name] = *b ? "true" : "false";
      } else if (name == "skip") {
        if (auto n = context_.Integer(value, what, 0, kRowsMax)) spec.options[name] = std::to_string(*n);
      } else if (value.kind == YamlNode::Kind::kScalar && !value.plain) {
        spec.options[name] = value.text;  // quoted: may be empty
      } else if (auto text = context_.Text(value, what)) {
        spec.options[name] = *text;
      }
    }
  }

  void Transform(const YamlNode& key, const YamlNode& node) {
    auto& spec = stage_.work.emplace<TransformSpec>();
    const YamlNode* sql = &node;
    if (node.kind == YamlNode::Kind::kMapping) {
      context_.OnlyKeys(node, {"sql"}, "transform");
      sql = context_.Need(node, key, "sql", "transform");
    }
    if (!sql) return;
    if (auto text = context_.Text(*sql, "the SQL of a transform")) spec.sql = std::move(*text);
    stage_.sql_place = {sql->line, sql->column};
  }

  void Load(const YamlNode& key, const YamlNode& node) {
    auto& spec = stage_.work.emplace<LoadSpec>();
    if (!context_.IsMapping(node, "load")) return;
    context_.OnlyKeys(node, {"from", "to", "table", "path", "mode", "key", "allow_empty", "provenance"}, "load");
    if (const YamlNode* from = context_.Need(node, key, "from", "load"))
      if (auto text = context_.Text(*from, "load.from")) spec.from = std::move(*text);
    const YamlNode* to = context_.Need(node, key, "to", "load");
    if (to && context_.IsName(*to, "load.to")) spec.to = to->text;
    const YamlNode* mode = Field(node, "mode");
    spec.mode = spec.to == "file" ? LoadMode::kReplace : LoadMode::kAppend;
    if (mode)
      if (auto word = context_.OneOf(*mode, "load.mode", {"append", "replace", "merge"})) spec.mode = *ParseLoadMode(*word);
    if (to) LoadTarget(spec, key, node);
    LoadKey(spec, mode ? *mode : key, node);
    if (const YamlNode* empty = Field(node, "allow_empty"))
      spec.allow_empty = context_.Bool(*empty, "load.allow_empty").value_or(false);
    if (const YamlNode* provenance = Field(node, "provenance"))
      spec.provenance = context_.Bool(*provenance, "load.provenance").value_or(false);
  }

  void LoadTarget(LoadSpec& spec, const YamlNode& key, const YamlNode& node) {
    const bool file = spec.to == "file";
    const YamlNode* table = Field(node, "table");
    const YamlNode* path = Field(node, "path");
    if (file && table) context_.Add(*table, "bad_value", "a load to a file has no table", "give 'path' instead");
    if (!file && path) context_.Add(*path, "bad_value", "a load to a table has no path", "give 'table', or 'to: file'");
    if (file) {
      if (const YamlNode* p = context_.Need(node, key, "path", "a load to a file"))
        if (auto text = context_.Text(*p, "load.path")) {
          spec.path = std::move(*text);
          if (!spec.path.ends_with(".parquet") && !spec.path.ends_with(".csv"))
            context_.Add(*p, "bad_value", fmt::format("load.path is '{}'; it must end in .parquet or .csv", Shown(spec.path)));
        }
      if (spec.mode != LoadMode::kReplace)
        context_.Add(*Field(node, "mode"), "bad_value", "a file can only be replaced",
                     "leave 'mode' out or write 'mode: replace'");
      return;
    }
    if (const YamlNode* t = context_.Need(node, key, "table", "a load to a connection"))
      if (auto text = context_.Text(*t, "load.table")) {
        spec.table = std::move(*text);
        if (!TableName(spec.table))
          context_.Add(*t, "bad_name", fmt::format("load.table '{}' is not a table name", spec.table),
                       "write table or schema.table, with letters, digits and _");
        if (IsReserved(spec.table))
          context_.Add(*t, "bad_name",
                       fmt::format("load.table '{}' is a name that Millrace or SQLite keeps for itself", spec.table),
                       "choose a table that does not begin with millrace or sqlite_");
      }
  }

  // Schema millrace in PostgreSQL; in SQLite, where case does not count and a dot becomes _, tables millrace_... and sqlite_...
  static bool IsReserved(std::string_view table) {
    std::string name;
    for (const char c : table) name += c == '.' ? '_' : c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    return name.starts_with("millrace_") || name.starts_with("sqlite_");
  }

  static bool TableName(std::string_view s) {
    int parts = 0;
    while (true) {
      const std::string_view part = s.substr(0, s.find('.'));
      const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
      if (part.empty() || part.size() > 63 || !letter(part[0])) return false;
      if (!std::ranges::all_of(part, [&](char c) { return letter(c) || (c >= '0' && c <= '9'); })) return false;
      if (++parts > 2) return false;
      if (part.size() == s.size()) return true;
      s.remove_prefix(part.size() + 1);
    }
  }

  void LoadKey(LoadSpec& spec, const YamlNode& mode_place, const YamlNode& node) {
    const YamlNode* key = Field(node, "key");
    if (key) spec.key = context_.TextList(*key, "load.key", true);
    if (key) Distinct(*key, spec.key, "load.key");
    if (spec.mode == LoadMode::kMerge && !key)
      context_.Add(mode_place, "missing_key", "mode merge needs 'key', the columns that identify a row",
                   "add key: [column, ...]");
    if (spec.mode != LoadMode::kMerge && key)
      context_.Add(*key, "bad_value", fmt::format("'key' has no meaning for mode {}", Name(spec.mode)),
                   "remove 'key' or write 'mode: merge'");
  }

  void Distinct(const YamlNode& node, const std::vector<std::string>& names, std::string_view what) {
    std::set<std::string_view> seen;
    for (const std::string& name : names)
      if (!seen.insert(name).second)
        context_.Add(node, "bad_value", fmt::format("{} names '{}' twice", what, name), "name it once");
  }

  void Command(const YamlNode& key, const YamlNode& node) {
    auto& spec = stage_.work.emplace<CommandSpec>();
    const YamlNode* argv = &node;
    if (node.kind == YamlNode::Kind::kMapping) {
      context_.OnlyKeys(node, {"argv", "env"}, "command");
      argv = context_.Need(node, key, "argv", "command");
      if (const YamlNode* env = Field(node, "env"); env && context_.IsMapping(*env, "command.env")) Environment(spec, *env);
    }
    if (!argv) return;
    if (argv->kind == YamlNode::Kind::kScalar && !argv->IsNull()) {
      context_.Add(*argv, "wrong_type", "a command must be a list of words, not a text", kCommandHelp);
      return;
    }
    if (argv->kind != YamlNode::Kind::kSequence) {
      context_.Add(*argv, "wrong_type", "a command must be a list of words", kCommandHelp);
      return;
    }
    for (const YamlNode& word : argv->items) {
      if (word.kind == YamlNode::Kind::kScalar && !word.plain && !spec.argv.empty()) {
        spec.argv.push_back(word.text);  // an argument may be the empty text
      } else if (auto text = context_.Text(word, "a word of a command", kCommandHelp)) {
        spec.argv.push_back(std::move(*text));
      }
    }
    for (std::size_t i = 0; i < argv->items.size(); ++i)
      if (HasNul(argv->items[i].text)) ContainsNul(argv->items[i], fmt::format("command.argv[{}]", i));
    if (argv->items.empty()) context_.Add(*argv, "bad_value", "the command is empty", kCommandHelp);
  }

  void ContainsNul(const YamlNode& node, const std::string& what) {
    context_.Add(node, "bad_value", what + " contains a NUL", "leave it out: a program would get what stands before it");
  }

  void Environment(CommandSpec& spec, const YamlNode& node) {
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      const YamlNode& name = node.keys[i];
      const YamlNode& value = node.items[i];
      if (!IsVariableName(name.text))
        context_.Add(name, "bad_name", fmt::format("'{}' is not the name of an environment variable", name.text),
                     "write a name without =");
      if (value.kind != YamlNode::Kind::kScalar) {
        context_.Add(value, "wrong_type", fmt::format("command.env.{} must be a text", name.text), "write one value");
      } else if (HasNul(value.text)) {
        ContainsNul(value, "command.env." + name.text);
      } else {
        spec.env[name.text] = value.IsNull() ? "" : value.text;
      }
    }
  }

  void Common() {
    const bool data = stage_.work.index() == 0 || stage_.work.index() == 1;
    const bool command = std::holds_alternative<CommandSpec>(stage_.work);
    if (const YamlNode* contract = Field(body_, "contract")) {
      if (has_work_ && !data)
        context_.Add(*contract, "bad_value", fmt::format("a {} stage has no contract", stage_.KindName()),
                     "put it on the stage that makes the rows");
      Contract(*contract);
    }
    if (const YamlNode* checks = Field(body_, "checks")) {
      if (has_work_ && command)
        context_.Add(*checks, "bad_value", "a command stage has no checks", "put them on the stage that makes the rows");
      Checks(*checks);
    }
    if (const YamlNode* retry = Field(body_, "retry")) Retry(*retry);
    if (const YamlNode* timeout = Field(body_, "timeout"))
      stage_.timeout = context_.Duration(*timeout, "timeout").value_or(Millis{0});
    if (const YamlNode* deadline = Field(body_, "deadline")) Deadline(*deadline);
    if (const YamlNode* queue = Field(body_, "queue"))
      if (context_.IsName(*queue, "queue")) stage_.queue = queue->text;
    if (const YamlNode* priority = Field(body_, "priority"))
      stage_.priority =
          static_cast<int>(context_.Integer(*priority, "priority", 0, kPriorityLevels - 1).value_or(kPriorityDefault));
    if (const YamlNode* key = Field(body_, "limit_key")) LimitKey(*key);
    if (const YamlNode* route = Field(body_, "route_by_size")) RouteBySize(*route);
    if (const YamlNode* after = Field(body_, "after")) {
      stage_.after = context_.TextList(*after, "after", true);
      Distinct(*after, stage_.after, "after");
    }
  }

  void Deadline(const YamlNode& node) {
    stage_.deadline = context_.Duration(node, "deadline").value_or(Millis{1});
    if (stage_.deadline == Millis{0})
      context_.Add(node, "bad_value", fmt::format("deadline is {}; it must be at least 1ms", node.text),
                   "leave it out for no deadline");
  }

  void LimitKey(const YamlNode& node) {
    auto text = context_.Text(node, "limit_key");
    if (!text) return;
    const bool control = std::ranges::any_of(*text, [](char c) { return static_cast<unsigned char>(c) < 0x20; });
    if (text->empty() || text->size() > kNameBytesMax || control)
      return context_.Add(node, "bad_value",
                          fmt::format("limit_key must have 1 to {} bytes and no control characters; it has {} bytes",
                                      kNameBytesMax, text->size()));
    stage_.limit_key = std::move(*text);
  }

  // Whether the stage reads anything is known when all stages are: see the pipeline's parser.
  void RouteBySize(const YamlNode& node) {
    stage_.route_rows = ParseRouteBySize(context_, node).value_or(0);
    if (const YamlNode* queue = Field(body_, "queue"); queue && stage_.route_rows > 0)
      context_.Add(*queue, "bad_value", "a stage has a queue, or is routed by its size",
                   "leave one of queue and route_by_size out");
  }

  void Retry(const YamlNode& node) {
    if (!context_.IsMapping(node, "retry")) return;
    context_.OnlyKeys(node, {"max_attempts", "backoff", "backoff_base", "backoff_cap", "backoff_max", "no_retry"}, "retry");
    RetryPolicy& retry = stage_.retry;
    if (const YamlNode* n = Field(node, "max_attempts"))
      retry.max_attempts = static_cast<int>(context_.Integer(*n, "retry.max_attempts", 1, kMaxAttemptsMax).value_or(1));
    // `backoff: 10s` is short for `backoff_base: 10s`, `backoff_max` another word for `backoff_cap`.
    const YamlNode* backoff = Field(node, "backoff");
    const bool is_time = backoff && !backoff->text.empty() && backoff->text.front() >= '0' && backoff->text.front() <= '9';
    if (backoff && !is_time)
      if (auto word = context_.OneOf(*backoff, "retry.backoff", {"fixed", "exponential"}))
        stage_.backoff = *ParseBackoff(*word);
    if (const YamlNode* base = OneWord(node, is_time ? "backoff" : "", "backoff_base"))
      retry.backoff_base = context_.Duration(*base, "retry." + WordOf(node, *base)).value_or(retry.backoff_base);
    const YamlNode* cap = OneWord(node, "backoff_max", "backoff_cap");
    if (cap) retry.backoff_cap = context_.Duration(*cap, "retry." + WordOf(node, *cap)).value_or(retry.backoff_cap);
    if (const YamlNode* classes = Field(node, "no_retry")) NoRetry(*classes);
    if (retry.backoff_cap >= retry.backoff_base) return;
    if (cap) {
      context_.Add(*cap, "bad_value",
                   fmt::format("retry.{} is {}, shorter than the first wait, {}", WordOf(node, *cap), cap->text,
                               Written(retry.backoff_base)),
                   fmt::format("write at least {}, or a shorter backoff_base", Written(retry.backoff_base)));
    } else {
      retry.backoff_cap = retry.backoff_base;
    }
  }

  // The value of whichever of two words for one thing is there.
  const YamlNode* OneWord(const YamlNode& node, std::string_view first, std::string_view second) {
    const YamlNode* a = first.empty() ? nullptr : Field(node, first);
    const YamlNode* b = Field(node, second);
    if (a && b) context_.Add(*b, "bad_value", fmt::format("retry says both '{}' and '{}'", first, second), "keep one of them");
    return b ? b : a;
  }
  static std::string WordOf(const YamlNode& node, const YamlNode& value) {
    for (std::size_t i = 0; i < node.keys.size(); ++i)
      if (&node.items[i] == &value) return node.keys[i].text;
    return {};
  }

  void NoRetry(const YamlNode& node) {
    stage_.no_retry = context_.TextList(node, "retry.no_retry", true);
    Distinct(node, stage_.no_retry, "retry.no_retry");
    if (stage_.no_retry.size() > kNoRetryClassesMax)
      context_.Add(
          node, "bad_value",
          fmt::format("retry.no_retry names {} error classes; the limit is {}", stage_.no_retry.size(), kNoRetryClassesMax));
    for (const std::string& name : stage_.no_retry) {
      if (std::ranges::find(kAttemptErrorClasses, name) != std::end(kAttemptErrorClasses)) continue;
      const std::string near = ParseContext::DidYouMean(name, kAttemptErrorClasses);
      context_.Add(node, "bad_value", fmt::format("retry.no_retry: '{}' is not an error class", name),
                   near.empty() ? "an error class is a word like check_failed, timed_out or command_failed" : near);
    }
  }

  void Contract(const YamlNode& node) {
    if (!context_.IsMapping(node, "contract")) return;
    ContractSpec& contract = stage_.contract.emplace();
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      const std::string& name = node.keys[i].text;
      const YamlNode& value = node.items[i];
      if (name == "on_violation") {
        if (auto word = context_.OneOf(value, "on_violation", {"fail", "quarantine", "drop"}))
          contract.on_violation = *ParseOnViolation(*word);
        continue;
      }
      if (const std::size_t parts = BrokenType(node, i); parts > 0) {
        i += parts;
        continue;
      }
      auto type = context_.Text(value, fmt::format("the type of column '{}'", name));
      if (type) ContractColumn(contract, name, *type, value);
    }
    if (contract.columns.empty() && node.keys.size() <= 1)
      context_.Add(node, "bad_value", "the contract names no column", "add column: type, or column: type not null");
  }

  void ContractColumn(ContractSpec& contract, const std::string& name, std::string type, const YamlNode& at) {
    static constexpr std::string_view kNotNull = " not null";
    std::string lower = type;
    std::ranges::transform(lower, lower.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    ColumnSpec column{name, std::move(type), lower.ends_with(kNotNull)};
    if (column.not_null) column.type.resize(column.type.size() - kNotNull.size());
    while (column.type.ends_with(' ')) column.type.pop_back();
    if (column.type.empty() || lower == "not null") {
      context_.Add(at, "bad_value", fmt::format("column '{}' has no type", name), "write a type, for example: text not null");
      return;
    }
    contract.columns.push_back(std::move(column));
  }

  void Checks(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::kSequence) {
      context_.Add(node, "wrong_type", "checks must be a list", "start each check with '- '");
      return;
    }
    for (const YamlNode& item : node.items) {
      if (!context_.IsMapping(item, "a check")) continue;
      context_.OnlyKeys(item, {"unique", "not_null", "accepted_values", "expression", "row_count"}, "a check");
      if (item.keys.size() != 1) {
        context_.Add(item, "bad_value", "a check has exactly one key", "start each check with its own '- '");
        continue;
      }
      if (const auto kind = ParseCheckKind(item.keys[0].text)) Check(*kind, item.keys[0], item.items[0]);
    }
  }

  void Check(CheckKind kind, const YamlNode& key, const YamlNode& node) {
    CheckSpec check;
    check.kind = kind;
    switch (kind) {
      case CheckKind::kUnique:
      case CheckKind::kNotNull:
        check.columns = context_.TextList(node, key.text, true);
        Distinct(node, check.columns, key.text);
        break;
      case CheckKind::kExpression:
        if (auto text = context_.Text(node, "expression")) check.expression = std::move(*text);
        break;
      case CheckKind::kAcceptedValues: AcceptedValues(check, key, node); break;
      case CheckKind::kRowCount: RowCount(check, node); break;
    }
    stage_.checks.push_back(std::move(check));
  }

  void AcceptedValues(CheckSpec& check, const YamlNode& key, const YamlNode& node) {
    if (!context_.IsMapping(node, "accepted_values")) return;
    context_.OnlyKeys(node, {"column", "values"}, "accepted_values");
    if (const YamlNode* column = context_.Need(node, key, "column", "accepted_values"))
      if (auto text = context_.Text(*column, "accepted_values.column")) check.columns.push_back(std::move(*text));
    if (const YamlNode* values = context_.Need(node, key, "values", "accepted_values"))
      check.values = context_.TextList(*values, "accepted_values.values", false);
  }

  void RowCount(CheckSpec& check, const YamlNode& node) {
    if (!context_.IsMapping(node, "row_count")) return;
    context_.OnlyKeys(node, {"min", "max"}, "row_count");
    if (const YamlNode* min = Field(node, "min")) check.min_rows = context_.Integer(*min, "row_count.min", 0, kRowsMax);
    if (const YamlNode* max = Field(node, "max")) check.max_rows = context_.Integer(*max, "row_count.max", 0, kRowsMax);
    if (node.keys.empty())
      context_.Add(node, "bad_value", "row_count needs min, max or both", "write for example row_count: { min: 1 }");
    if (check.min_rows && check.max_rows && *check.min_rows > *check.max_rows)
      context_.Add(*Field(node, "min"), "bad_value",
                   fmt::format("row_count.min is {}, greater than row_count.max, {}", *check.min_rows, *check.max_rows),
                   "write a smaller min, a greater max, or leave one of them out");
  }

  ParseContext& context_;
  const YamlNode& key_;
  const YamlNode& body_;
  std::string what_;
  StageSpec stage_;
  bool has_work_ = false;
};

}  // namespace

std::optional<std::int64_t> ParseRouteBySize(ParseContext& context, const YamlNode& node) {
  if (node.plain && node.text == "true") return kRouteRowsDefault;
  if (node.plain && node.text == "false") return 0;
  return context.Integer(node, "route_by_size (true, false, or a number of rows)", 1, kRouteRowsMax);
}

std::optional<StageSpec> ParseStage(ParseContext& context, const YamlNode& key, const YamlNode& body) {
  return StageParser(context, key, body).Parse();
}

}  // namespace millrace
