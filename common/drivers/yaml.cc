#include "common/drivers/yaml.h"

#include <fmt/format.h>
#include <libfyaml.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_set>
#include <utility>

namespace millrace {
namespace {

struct ParserFree {
  void operator()(fy_parser* p) const noexcept { fy_parser_destroy(p); }
};
struct DiagFree {
  void operator()(fy_diag* d) const noexcept { fy_diag_destroy(d); }
};
struct EventFree {
  fy_parser* parser;
  void operator()(fy_event* e) const noexcept { fy_parser_event_free(parser, e); }
};
using EventPtr = std::unique_ptr<fy_event, EventFree>;

// Length of the UTF-8 sequence at the front of `s`, 0 if it is not one.
std::size_t SequenceLength(std::string_view s) {
  const auto byte = [&](std::size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0u; };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned b0 = byte(0);
  if (b0 < 0x80) return 1;
  if (b0 >= 0xC2 && b0 <= 0xDF) return continues(1) ? 2 : 0;
  if (b0 >= 0xE0 && b0 <= 0xEF) {
    if (!continues(1) || !continues(2) || (b0 == 0xE0 && byte(1) < 0xA0) || (b0 == 0xED && byte(1) > 0x9F)) return 0;
    return 3;
  }
  if (b0 >= 0xF0 && b0 <= 0xF4) {
    if (!continues(1) || !continues(2) || !continues(3) || (b0 == 0xF0 && byte(1) < 0x90) || (b0 == 0xF4 && byte(1) > 0x8F))
      return 0;
    return 4;
  }
  return 0;
}

int CodePoints(std::string_view text) {
  return static_cast<int>(std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// Bytes a text file may hold though YAML does not: the controls U+0080 .. U+009F but for the line end U+0085, and the two
// numbers that are no characters.
bool IsPrintable(std::string_view sequence) {
  if (sequence.size() == 2 && sequence[0] == '\xC2')
    return static_cast<unsigned char>(sequence[1]) >= 0xA0 || sequence[1] == '\x85';
  return sequence != "\xEF\xBF\xBE" && sequence != "\xEF\xBF\xBF";
}

// What libfyaml would report less clearly, or let through, or does not survive: it never comes back from some directives, and
// gives up the whole process at a byte order mark in the text.
std::optional<YamlComplaint> BadBytes(std::string_view source) {
  int line = 1, column = 1;
  for (std::size_t i = 0; i < source.size();) {
    const char c = source[i];
    const std::size_t n = SequenceLength(source.substr(i));
    if (n == 0)
      return YamlComplaint{line,
                           column,
                           1,
                           "invalid_utf8",
                           fmt::format("byte 0x{:02x} is not UTF-8", static_cast<unsigned char>(c)),
                           "save the file as UTF-8"};
    const bool control = n == 1 && ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7F);
    if (control)
      return YamlComplaint{line,
                           column,
                           1,
                           "invalid_character",
                           fmt::format("control character 0x{:02x} is not allowed", static_cast<unsigned char>(c)),
                           ""};
    if (i > 0 && source.substr(i, 3) == "\xEF\xBB\xBF")
      return YamlComplaint{line, column, 1, "invalid_character", "a byte order mark (U+FEFF) in the text", "delete it"};
    if (!IsPrintable(source.substr(i, n)))
      return YamlComplaint{line, column, 1, "invalid_character", "a character that cannot be printed", "delete it"};
    if (column == 1 && c == '%')
      return YamlComplaint{
          line, 1, 1, "yaml_directive", "directives (%YAML, %TAG) are not allowed", "delete the line, or indent it"};
    i += n;
    ++column;
    if (c == '\n') ++line, column = 1;
  }
  return std::nullopt;
}

class TreeBuilder {
 public:
  TreeBuilder(std::string_view source, const YamlLimits& limits) : source_(source), limits_(limits) {
    std::size_t start = 0;
    while (start <= source.size()) {
      const auto end = std::min(source.find('\n', start), source.size());
      lines_.push_back(source.substr(start, end - start));
      start = end + 1;
    }
  }

  YamlDocument Build() {
    fy_diag_cfg diag_config{};
    fy_diag_cfg_default(&diag_config);
    diag_config.fp = nullptr;
    diag_config.colorize = false;
    const std::unique_ptr<fy_diag, DiagFree> diag(fy_diag_create(&diag_config));
    if (!diag) return OutOfMemory();
    fy_diag_set_collect_errors(diag.get(), true);
    fy_parse_cfg config{};
    config.flags = static_cast<fy_parse_cfg_flags>(FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_DEFAULT_VERSION_1_2 |
                                                   FYPCF_JSON_NONE | FYPCF_ALLOW_DUPLICATE_KEYS);
    config.diag = diag.get();
    const std::unique_ptr<fy_parser, ParserFree> parser(fy_parser_create(&config));
    if (!parser || fy_parser_set_string(parser.get(), source_.data(), source_.size()) != 0) return OutOfMemory();
    bool ended = false;
    while (!stopped_) {
      const EventPtr event(fy_parser_parse(parser.get()), EventFree{parser.get()});
      if (!event) break;
      if (event->type == FYET_STREAM_END) ended = true;
      Take(*event);
    }
    if (!ended && !stopped_) SyntaxError(diag.get());
    if (ended && !root_ && document_.complaints.empty())
      document_.complaints.push_back({0, 0, 1, "empty_file", "the file is empty", ""});
    if (ended && !stopped_) document_.root = std::move(root_);
    return std::move(document_);
  }

 private:
  struct Open {
    YamlNode node;
    std::unordered_set<std::string> seen;
    bool key_next = false;  // mapping: the next scalar is a key
  };

  YamlDocument OutOfMemory() {
    document_.complaints.push_back({0, 0, 1, "yaml_syntax", "the YAML reader could not start (out of memory)", ""});
    return std::move(document_);
  }

  void Stop(const YamlNode& at, std::string code, std::string message, std::string help) {
    document_.complaints.push_back({at.line, at.column, at.length, std::move(code), std::move(message), std::move(help)});
    stopped_ = true;
  }

  static YamlNode Place(fy_event& event) {
    YamlNode node;
    if (const fy_mark* mark = fy_event_start_mark(&event)) {
      node.line = mark->line + 1;
      node.column = mark->column + 1;
    }
    return node;
  }

  void Take(fy_event& event) {
    switch (event.type) {
      case FYET_DOCUMENT_START:
        if (documents_++ > 0)
          Stop(Place(event), "yaml_documents", "a second document starts here", "keep one document per file");
        return;
      case FYET_ALIAS: return Stop(Place(event), "yaml_alias", "aliases (*name) are not allowed", "write the value out");
      case FYET_SCALAR: return Scalar(event);
      case FYET_SEQUENCE_START: return Begin(event, YamlNode::Kind::kSequence);
      case FYET_MAPPING_START: return Begin(event, YamlNode::Kind::kMapping);
      case FYET_SEQUENCE_END:
      case FYET_MAPPING_END: return End();
      case FYET_NONE:
      case FYET_STREAM_START:
      case FYET_STREAM_END:
      case FYET_DOCUMENT_END: return;
    }
  }

  bool RefuseProperties(const YamlNode& at, const fy_token* anchor, const fy_token* tag) {
    if (anchor) Stop(at, "yaml_alias", "anchors (&name) are not allowed", "write the value out where it is needed");
    if (tag && !stopped_) Stop(at, "yaml_tag", "tags (!type) are not allowed", "the type follows from the place");
    return stopped_;
  }

  void Scalar(fy_event& event) {
    YamlNode node = Place(event);
    fy_token* token = event.scalar.value;
    if (RefuseProperties(node, event.scalar.anchor, event.scalar.tag)) return;
    const fy_scalar_style style = token ? fy_token_scalar_style(token) : FYSS_PLAIN;
    std::size_t size = 0;
    if (const char* text = token ? fy_token_get_text(token, &size) : nullptr) node.text.assign(text, size);
    node.plain = style == FYSS_PLAIN || style == FYSS_ANY;
    node.literal = style == FYSS_LITERAL;
    if (node.literal || style == FYSS_FOLDED) {
      MoveToBlockText(node);
      if (!IsItsText(node))
        return Stop(node, "yaml_syntax", "not valid YAML: the text of a block must be indented deeper than its key", "");
    } else if (token) {
      const fy_mark* start = fy_token_start_mark(token);
      const fy_mark* end = fy_token_end_mark(token);
      if (start && end && start->line == end->line) node.length = std::max(1, end->column - start->column);
    }
    Place(std::move(node));
  }

  // The mark of a block scalar is its indicator or its text, depending on the style: settle on the first line of the text.
  void MoveToBlockText(YamlNode& node) {
    auto line = static_cast<std::size_t>(std::max(node.line, 1)) - 1;
    const auto indicator = [&](std::string_view l) {
      const auto at = l.find_first_of("|>", static_cast<std::size_t>(std::max(node.column, 1)) - 1);
      return at != std::string_view::npos && at + 1 == static_cast<std::size_t>(node.column);
    };
    if (line < lines_.size() && indicator(lines_[line])) ++line;
    node.line = static_cast<int>(line) + 1;
    node.column = 1;
    node.length = 1;
    for (std::size_t i = line; i < lines_.size(); ++i) {
      const auto text_at = lines_[i].find_first_not_of(' ');
      if (text_at == std::string_view::npos || lines_[i][text_at] == '\r') continue;
      node.column = static_cast<int>(text_at) + 1;
      node.length = std::max(1, CodePoints(lines_[i].substr(text_at)));
      return;
    }
  }

  // libfyaml takes text that is no deeper than its key, and then hands out bytes that are not in the file.
  bool IsItsText(const YamlNode& block) const {
    const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
    if (std::ranges::all_of(block.text, blank)) return true;
    if (!open_.empty() && !open_.back().node.keys.empty() && block.column <= open_.back().node.keys.back().column) return false;
    const auto line = static_cast<std::size_t>(block.line) - 1;
    if (line >= lines_.size()) return false;
    const char* at = lines_[line].data();
    const char* const end = source_.data() + source_.size();
    for (const char c : block.text) {
      if (blank(c)) continue;
      while (at != end && blank(*at)) ++at;
      if (at == end || *at++ != c) return false;
    }
    return true;
  }

  void Begin(fy_event& event, YamlNode::Kind kind) {
    YamlNode node = Place(event);
    node.kind = kind;
    const bool map = kind == YamlNode::Kind::kMapping;
    if (RefuseProperties(node, map ? event.mapping_start.anchor : event.sequence_start.anchor,
                         map ? event.mapping_start.tag : event.sequence_start.tag))
      return;
    if (open_.size() >= limits_.depth_max)
      return Stop(node, "too_deep", fmt::format("nested more than {} levels deep", limits_.depth_max), "");
    if (!open_.empty() && open_.back().key_next) return Stop(node, "wrong_type", "a key must be a plain word", "");
    open_.push_back(Open{std::move(node), {}, map});
  }

  void End() {
    YamlNode done = std::move(open_.back().node);
    open_.pop_back();
    Place(std::move(done));
  }

  void Place(YamlNode node) {
    if (stopped_) return;
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& top = open_.back();
    if (!top.key_next) {
      top.node.items.push_back(std::move(node));
      top.key_next = top.node.kind == YamlNode::Kind::kMapping;
      return;
    }
    if (node.plain && node.text == "<<")
      return Stop(node, "yaml_alias", "merge keys (<<) are not allowed", "write the keys out");
    if (!top.seen.insert(node.text).second)
      document_.complaints.push_back({node.line, node.column, node.length, "duplicate_key",
                                      fmt::format("duplicate key '{}'", node.text),
                                      fmt::format("it is already given in line {}", LineOfKey(top.node, node.text))});
    top.node.keys.push_back(std::move(node));
    top.key_next = false;
  }

  static int LineOfKey(const YamlNode& mapping, std::string_view key) {
    for (const YamlNode& k : mapping.keys)
      if (k.text == key) return k.line;
    return 0;
  }

  void SyntaxError(fy_diag* diag) {
    YamlComplaint complaint{1, 1, 1, "yaml_syntax", "not valid YAML", ""};
    void* iterator = nullptr;
    while (const fy_diag_error* error = fy_diag_errors_iterate(diag, &iterator)) {
      if (error->type != FYET_ERROR) continue;
      if (error->line > 0) complaint.line = error->line, complaint.column = std::max(error->column, 1);
      if (error->msg && *error->msg) complaint.message = fmt::format("not valid YAML: {}", error->msg);
      break;
    }
    while (!complaint.message.empty() && complaint.message.back() == '\n') complaint.message.pop_back();
    // "Something is missing" is reported behind the end: show the end instead.
    auto at = std::min(static_cast<std::size_t>(complaint.line), lines_.size());
    if (complaint.line > static_cast<int>(lines_.size()) || lines_[at - 1].empty()) {
      while (at > 1 && lines_[at - 1].empty()) --at;
      complaint.line = static_cast<int>(at);
      complaint.column = CodePoints(lines_[at - 1]) + 1;
    }
    // A tab is what most of these are about, and libfyaml seldom says so.
    const auto last = std::min(static_cast<std::size_t>(complaint.line), lines_.size());
    for (std::size_t i = last; i > 0 && i + 2 > last; --i) {
      const auto text_at = lines_[i - 1].find_first_not_of(' ');
      if (text_at == std::string_view::npos || lines_[i - 1][text_at] != '\t') continue;
      complaint = {static_cast<int>(i),
                   static_cast<int>(text_at) + 1,
                   1,
                   "tab_indent",
                   "a tab in the indentation; YAML allows only spaces",
                   "replace the tab by spaces"};
      break;
    }
    document_.complaints.push_back(std::move(complaint));
  }

  std::string_view source_;
  const YamlLimits& limits_;
  std::vector<std::string_view> lines_;
  std::vector<Open> open_;
  std::optional<YamlNode> root_;
  YamlDocument document_;
  int documents_ = 0;
  bool stopped_ = false;
};

}  // namespace

bool YamlNode::IsNull() const {
  return kind == Kind::kScalar && plain && (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL");
}

const YamlNode* YamlNode::Find(std::string_view key) const {
  for (std::size_t i = 0; i < keys.size(); ++i)
    if (keys[i].text == key) return &items[i];
  return nullptr;
}

YamlDocument ParseYaml(std::string_view source, const YamlLimits& limits) {
  YamlDocument refused;
  if (source.size() > limits.bytes_max) {
    refused.complaints.push_back(
        {0, 0, 1, "too_large", fmt::format("the file has {} bytes, the limit is {}", source.size(), limits.bytes_max), ""});
    return refused;
  }
  if (auto bad = BadBytes(source)) {
    refused.complaints.push_back(std::move(*bad));
    return refused;
  }
  if (source.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    refused.complaints.push_back({0, 0, 1, "empty_file", "the file is empty", ""});
    return refused;
  }
  return TreeBuilder(source, limits).Build();
}

}  // namespace millrace
