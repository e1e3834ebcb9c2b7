#include "worker/stage/load/scrub.h"

#include <algorithm>
#include <vector>

namespace millrace::load {
namespace {

constexpr std::size_t kPieceBytesMin = 3;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string PercentDecoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 && HexDigit(text[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Backslashes escape in a conninfo string.
std::string Unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) ++i;
    out += text[i];
  }
  return out;
}

// From the colon after the user to the last '@' before the options: wherever the password was meant to end.
std::string_view UriPassword(std::string_view dsn) {
  const auto scheme = dsn.find("://");
  if (scheme == std::string_view::npos) return {};
  std::string_view rest = dsn.substr(scheme + 3);
  const auto at = rest.rfind('@');
  const auto colon = rest.find(':');
  return at == std::string_view::npos || colon >= at ? std::string_view{} : rest.substr(colon + 1, at - colon - 1);
}

std::string_view ValueAfter(std::string_view rest) {
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  if (!rest.starts_with('=')) return {};
  rest.remove_prefix(1);
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  const char end = rest.starts_with('\'') ? '\'' : ' ';
  if (end == '\'') rest.remove_prefix(1);
  std::size_t size = 0;
  while (size < rest.size() && rest[size] != end && !(end == ' ' && rest[size] == '&')) size += rest[size] == '\\' ? 2U : 1U;
  return rest.substr(0, size);
}

std::vector<std::string> SecretsOf(std::string_view dsn) {
  std::vector<std::string> whole{std::string(dsn), std::string(UriPassword(dsn))};
  constexpr std::string_view kKey = "password";
  for (auto at = dsn.find(kKey); at != std::string_view::npos; at = dsn.find(kKey, at + kKey.size()))
    whole.emplace_back(ValueAfter(dsn.substr(at + kKey.size())));
  std::vector<std::string> out;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const std::string& form : {whole[i], PercentDecoded(whole[i]), Unescaped(whole[i])}) {
      out.push_back(form);
      if (i == 0) continue;  // pieces of the dsn are its host and database as well
      for (std::size_t from = 0; from <= form.size();) {
        const auto to = std::min(form.find_first_of("/@:?#& ", from), form.size());
        out.push_back(form.substr(from, to - from));
        out.push_back(PercentDecoded(out.back()));
        from = to + 1;
      }
    }
  }
  std::erase_if(out, [](const std::string& s) { return s.size() < kPieceBytesMin; });
  std::ranges::sort(out, [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  return out;
}

}  // namespace

std::string Scrubbed(std::string text, std::string_view dsn) {
  for (const std::string& secret : SecretsOf(dsn))
    for (auto at = text.find(secret); at != std::string::npos; at = text.find(secret, at + 3))
      text.replace(at, secret.size(), "***");
  return text;
}

}  // namespace millrace::load
