#include "common/model/parse_context.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "common/base/suggest.h"
#include "common/model/pipeline_parser.h"

namespace millrace {
namespace {

constexpr std::size_t kShownMax = 60;  // bytes of a wrong value inside a message
constexpr std::int64_t kDurationMsMax = 366LL * 24 * 3600 * 1000;
constexpr std::size_t kNamesShownMax = 20;

std::string_view Kind(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kSequence: return "a list";
    case YamlNode::Kind::kMapping: return "a mapping";
    case YamlNode::Kind::kScalar: return node.IsNull() ? "nothing" : "a text";
  }
  return "nothing";
}

}  // namespace

void ParseContext::Add(const YamlNode& at, std::string code, std::string message, std::string help) {
  Add(SourcePlace{at.line, at.column}, at.length, std::move(code), std::move(message), std::move(help));
}

void ParseContext::Add(SourcePlace place, int length, std::string code, std::string message, std::string help) {
  // Enough to sort out which come first, without keeping a million complaints about one broken file.
  if (diagnostics_.size() >= kDiagnosticsMax * 10) return;
  std::ranges::replace(message, '\n', ' ');
  diagnostics_.push_back({file_, place, length, std::move(code), std::move(message), std::move(help)});
}

std::vector<Diagnostic> ParseContext::Take() {
  std::ranges::stable_sort(diagnostics_, {}, [](const Diagnostic& d) { return std::pair(d.place.line, d.place.column); });
  if (diagnostics_.size() > kDiagnosticsMax) diagnostics_.resize(kDiagnosticsMax);
  return std::move(diagnostics_);
}

bool ParseContext::IsMapping(const YamlNode& node, std::string_view what) {
  if (node.kind == YamlNode::Kind::kMapping) return true;
  Add(node, "wrong_type", fmt::format("{} must be a mapping (key: value), not {}", what, Kind(node)));
  return false;
}

void ParseContext::OnlyKeys(const YamlNode& mapping, Words allowed, std::string_view what) {
  const std::span<const std::string_view> words(allowed.begin(), allowed.size());
  for (const YamlNode& key : mapping.keys) {
    if (std::ranges::find(words, key.text) != words.end()) continue;
    std::string help = DidYouMean(key.text, words);
    if (help.empty()) help = fmt::format("{} has: {}", what, Listed(words));
    Add(key, "unknown_key", fmt::format("unknown key '{}'", Shown(key.text)), std::move(help));
  }
}

const YamlNode* ParseContext::Need(const YamlNode& mapping, const YamlNode& owner, std::string_view key,
                                   std::string_view what) {
  const YamlNode* value = mapping.Find(key);
  if (!value) Add(owner, "missing_key", fmt::format("{} needs the key '{}'", what, key));
  return value;
}

bool ParseContext::Scalar(const YamlNode& node, std::string_view what, std::string_view expected) {
  if (node.kind == YamlNode::Kind::kScalar && !node.IsNull()) return true;
  Add(node, "wrong_type", fmt::format("{} must be {}, not {}", what, expected, Kind(node)));
  return false;
}

std::optional<std::string> ParseContext::Text(const YamlNode& node, std::string_view what, std::string_view help) {
  if (!Scalar(node, what, "a text")) return std::nullopt;
  if (!node.text.empty()) return node.text;
  Add(node, "bad_value", fmt::format("{} is empty", what), std::string(help));
  return std::nullopt;
}

std::optional<bool> ParseContext::Bool(const YamlNode& node, std::string_view what) {
  if (!Scalar(node, what, "true or false")) return std::nullopt;
  if (node.plain && (node.text == "true" || node.text == "false")) return node.text == "true";
  Add(node, "wrong_type", fmt::format("{} must be true or false, not '{}'", what, Shown(node.text)));
  return std::nullopt;
}

std::optional<std::int64_t> ParseContext::Integer(const YamlNode& node, std::string_view what, std::int64_t min,
                                                  std::int64_t max) {
  if (!Scalar(node, what, "an integer")) return std::nullopt;
  std::int64_t value = 0;
  const char* last = node.text.data() + node.text.size();
  const auto [end, ec] = std::from_chars(node.text.data(), last, value);
  if (!node.plain || ec == std::errc::invalid_argument || end != last) {
    Add(node, "wrong_type", fmt::format("{} must be an integer, not '{}'", what, Shown(node.text)));
  } else if (ec != std::errc{} || value < min || value > max) {
    Add(node, "bad_value", fmt::format("{} is {}; it must be between {} and {}", what, Shown(node.text), min, max));
  } else {
    return value;
  }
  return std::nullopt;
}

std::optional<Millis> ParseContext::Duration(const YamlNode& node, std::string_view what) {
  static constexpr std::array<std::pair<std::string_view, std::int64_t>, 5> kUnits{
      {{"ms", 1}, {"s", 1000}, {"m", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}}};
  if (!Scalar(node, what, "a time such as 10s")) return std::nullopt;
  std::int64_t count = 0;
  const char* last = node.text.data() + node.text.size();
  const auto [end, ec] = std::from_chars(node.text.data(), last, count);
  const std::string_view unit(end, static_cast<std::size_t>(last - end));
  for (const auto& [name, ms] : kUnits) {
    if (ec == std::errc::invalid_argument || name != unit || node.text.starts_with('-')) continue;
    if (ec == std::errc{} && count <= kDurationMsMax / ms) return Millis{count * ms};
    Add(node, "bad_value", fmt::format("{} is {}; it must be at most 366d", what, Shown(node.text)));
    return std::nullopt;
  }
  Add(node, "bad_duration", fmt::format("{}: '{}' is not a time", what, Shown(node.text)),
      "write a whole number and a unit: ms, s, m, h or d, for example 90s");
  return std::nullopt;
}

std::optional<std::string> ParseContext::OneOf(const YamlNode& node, std::string_view what, Words words) {
  const std::span<const std::string_view> list(words.begin(), words.size());
  if (!Scalar(node, what, Listed(list))) return std::nullopt;
  if (std::ranges::find(list, node.text) != list.end()) return node.text;
  Add(node, "bad_value", fmt::format("{} must be {}, not '{}'", what, Listed(list), Shown(node.text)),
      DidYouMean(node.text, list));
  return std::nullopt;
}

bool ParseContext::IsName(const YamlNode& node, std::string_view what) {
  if (!Scalar(node, what, "a name")) return false;
  const std::string_view s = node.text;
  const auto lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const bool good = !s.empty() && s.size() <= 63 && lower(s[0]) &&
                    std::ranges::all_of(s, [&](char c) { return lower(c) || (c >= '0' && c <= '9') || c == '_'; });
  if (!good)
    Add(node, "bad_name", fmt::format("{} '{}' is not a valid name", what, Shown(s)),
        "use a lower-case letter, then lower-case letters, digits and _, at most 63 in all");
  return good;
}

std::vector<std::string> ParseContext::TextList(const YamlNode& node, std::string_view what, bool single) {
  std::vector<std::string> out;
  if (single && node.kind == YamlNode::Kind::kScalar && !node.IsNull()) {
    if (auto text = Text(node, what)) out.push_back(std::move(*text));
    return out;
  }
  if (node.kind != YamlNode::Kind::kSequence) {
    Add(node, "wrong_type", fmt::format("{} must be {}, not {}", what, single ? "a text or a list" : "a list", Kind(node)));
    return out;
  }
  if (node.items.empty()) Add(node, "bad_value", fmt::format("{} is an empty list", what), "name at least one");
  for (const YamlNode& item : node.items) {
    auto text = Text(item, fmt::format("an item of {}", what));
    if (text) out.push_back(std::move(*text));
  }
  return out;
}

std::string ParseContext::DidYouMean(std::string_view wrong, std::span<const std::string_view> candidates) {
  const auto near = Suggest(wrong, candidates);
  return near ? fmt::format("did you mean '{}'?", *near) : "";
}

std::string ParseContext::DidYouMeanOf(std::string_view wrong, std::span<const std::string_view> candidates,
                                       std::string_view what) {
  std::string help = DidYouMean(wrong, candidates);
  if (!help.empty()) return help;
  const auto shown = candidates.first(std::min(candidates.size(), kNamesShownMax));
  return fmt::format("the {} are: {}{}", what, fmt::join(shown, ", "), shown.size() < candidates.size() ? ", ..." : "");
}

std::string Shown(std::string_view text) {
  if (text.size() <= kShownMax) return std::string(text);
  std::size_t end = kShownMax;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "...";
}

std::string Written(Millis time) {
  return time.count() % 1000 == 0 ? fmt::format("{}s", time.count() / 1000) : fmt::format("{}ms", time.count());
}

std::string Listed(std::span<const std::string_view> words) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += i + 1 == words.size() ? " or " : ", ";
    out += words[i];
  }
  return out;
}

}  // namespace millrace
