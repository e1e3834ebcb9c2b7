// What the parts of the pipeline parser share: the list of complaints and typed readers of YAML nodes. Private to this folder.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/drivers/yaml.h"
#include "common/model/pipeline.h"
#include "common/model/pipeline_places.h"

namespace millrace {

using Words = std::initializer_list<std::string_view>;

// A reader returns nothing after it has complained. `what` names the value in messages: "retry.max_attempts".
class ParseContext {
 public:
  explicit ParseContext(std::string_view file) : file_(file) {}

  void Add(const YamlNode& at, std::string code, std::string message, std::string help = "");
  void Add(SourcePlace place, int length, std::string code, std::string message, std::string help = "");
  std::vector<Diagnostic> Take();  // sorted by place, at most kDiagnosticsMax
  bool clean() const { return diagnostics_.empty(); }

  bool IsMapping(const YamlNode& node, std::string_view what);
  // Complains about keys that are not in `allowed`. REQUIRES: a mapping.
  void OnlyKeys(const YamlNode& mapping, Words allowed, std::string_view what);
  // The value of a key that must be there; complains at `owner`.
  const YamlNode* Need(const YamlNode& mapping, const YamlNode& owner, std::string_view key, std::string_view what);

  // `help`: what to write where nothing stands.
  std::optional<std::string> Text(const YamlNode& node, std::string_view what,
                                  std::string_view help = "write a value that is not empty");
  std::optional<bool> Bool(const YamlNode& node, std::string_view what);
  std::optional<std::int64_t> Integer(const YamlNode& node, std::string_view what, std::int64_t min, std::int64_t max);
  std::optional<Millis> Duration(const YamlNode& node, std::string_view what);
  std::optional<std::string> OneOf(const YamlNode& node, std::string_view what, Words words);
  // [a-z][a-z0-9_]{0,62}
  bool IsName(const YamlNode& node, std::string_view what);
  // A list of non-empty texts without repetition; a single text is a list of one if `single`.
  std::vector<std::string> TextList(const YamlNode& node, std::string_view what, bool single);
  // "did you mean 'x'?" or nothing.
  static std::string DidYouMean(std::string_view wrong, std::span<const std::string_view> candidates);
  // The same, and where nothing is near what there is: "the stages are: a, b".
  static std::string DidYouMeanOf(std::string_view wrong, std::span<const std::string_view> candidates, std::string_view what);

 private:
  bool Scalar(const YamlNode& node, std::string_view what, std::string_view expected);

  std::string file_;
  std::vector<Diagnostic> diagnostics_;
};

// A wrong value as a message repeats it: its beginning.
std::string Shown(std::string_view text);

// As a file writes it: "90s", "1500ms".
std::string Written(Millis time);

// "a, b or c"
std::string Listed(std::span<const std::string_view> words);

// Where a byte of a node's text stands in the file. Exact for a `|` block and for a text within one line, else the node.
Mark MarkInText(const YamlNode& node, std::string_view text, std::size_t offset, std::size_t length);

// `route_by_size: true | false | ROWS`: the rows up to which a stage is small, 0 for false. Nothing after a complaint.
std::optional<std::int64_t> ParseRouteBySize(ParseContext& context, const YamlNode& node);

// Reads one stage without regard to the others. `key` is its name. The derived fields come later.
std::optional<StageSpec> ParseStage(ParseContext& context, const YamlNode& key, const YamlNode& body);

}  // namespace millrace
