#include <algorithm>
#include <iterator>
#include <optional>
#include <vector>

#include "common/config/config.h"

namespace millrace {
namespace {

constexpr std::string_view kMask = "***";

// What libpq knows, up to version 17. A word that is not among them is more likely a part of a password with a space in it.
constexpr std::string_view kKeywords[] = {"service",
                                          "servicefile",
                                          "user",
                                          "password",
                                          "passfile",
                                          "channel_binding",
                                          "connect_timeout",
                                          "dbname",
                                          "host",
                                          "hostaddr",
                                          "port",
                                          "client_encoding",
                                          "options",
                                          "application_name",
                                          "fallback_application_name",
                                          "keepalives",
                                          "keepalives_idle",
                                          "keepalives_interval",
                                          "keepalives_count",
                                          "tcp_user_timeout",
                                          "replication",
                                          "sslmode",
                                          "sslnegotiation",
                                          "sslcompression",
                                          "sslcert",
                                          "sslkey",
                                          "sslcertmode",
                                          "sslpassword",
                                          "sslrootcert",
                                          "sslcrl",
                                          "sslcrldir",
                                          "sslsni",
                                          "requirepeer",
                                          "require_auth",
                                          "ssl_min_protocol_version",
                                          "ssl_max_protocol_version",
                                          "gssencmode",
                                          "krbsrvname",
                                          "gsslib",
                                          "gssdelegation",
                                          "target_session_attrs",
                                          "load_balance_hosts"};

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// "key = value" of a conninfo string; the value's place includes its quotes.
struct Pair {
  std::string_view key;
  std::size_t begin = 0, end = 0;
};

// As libpq takes it apart; nothing: it is not a list of pairs.
std::optional<std::vector<Pair>> SplitPairs(std::string_view text) {
  std::vector<Pair> pairs;
  std::size_t at = 0;
  const auto skip = [&] {
    while (at < text.size() && IsSpace(text[at])) ++at;
  };
  for (skip(); at < text.size(); skip()) {
    Pair pair;
    const std::size_t key = at;
    while (at < text.size() && text[at] != '=' && !IsSpace(text[at])) ++at;
    pair.key = text.substr(key, at - key);
    skip();
    if (pair.key.empty() || at == text.size() || text[at] != '=') return std::nullopt;
    ++at;
    skip();
    pair.begin = at;
    const bool quoted = at < text.size() && text[at] == '\'';
    if (quoted) ++at;
    while (at < text.size() && (quoted ? text[at] != '\'' : !IsSpace(text[at]))) at += text[at] == '\\' ? 2U : 1U;
    if (quoted && at >= text.size()) return std::nullopt;
    at = std::min(quoted ? at + 1 : at, text.size());
    pair.end = at;
    pairs.push_back(pair);
  }
  return pairs;
}

// The text between "://" and the path.
struct Authority {
  std::size_t begin = 0, end = 0;
  bool in_pairs = false;  // it stands after a '=': more likely in a value of key=value than in a URI
};
std::optional<Authority> AuthorityOf(std::string_view uri) {
  const auto scheme = uri.find("://");
  if (scheme == std::string_view::npos) return std::nullopt;
  return Authority{scheme + 3, std::min(uri.find_first_of("/?", scheme + 3), uri.size()), uri.find('=') < scheme};
}

// False: an '@' where none can be, so that nobody can tell where the password ends.
bool IsClear(std::string_view uri, const Authority& a) {
  const std::string_view authority = uri.substr(a.begin, a.end - a.begin);
  const std::string_view path = uri.substr(a.end, std::min(uri.find('?', a.end), uri.size()) - a.end);
  return std::ranges::count(authority, '@') <= 1 && path.find('@') == std::string_view::npos;
}

bool PortsAreNumbers(std::string_view hosts) {
  for (std::size_t from = 0; from <= hosts.size();) {
    const std::size_t to = std::min(hosts.find(',', from), hosts.size());
    std::string_view host = hosts.substr(from, to - from);
    from = to + 1;
    if (host.starts_with('[')) host.remove_prefix(std::min(host.find(']'), host.size()));
    const auto colon = host.find(':');
    if (colon == std::string_view::npos) continue;
    if (!std::ranges::all_of(host.substr(colon + 1), [](char c) { return c >= '0' && c <= '9'; })) return false;
  }
  return true;
}

std::string RedactUri(std::string text, const Authority& a) {
  if (!IsClear(text, a)) return text.substr(0, a.begin) + std::string(kMask);
  const std::size_t at = text.find('@', a.begin), colon = text.find(':', a.begin);
  std::size_t from = a.end;
  if (at < a.end && colon < at) {
    text.replace(colon + 1, at - colon - 1, kMask);
    from = text.find('@', a.begin);
  }
  constexpr std::string_view kKey = "password=";
  for (std::size_t key = text.find(kKey, from); key != std::string::npos; key = text.find(kKey, key + kKey.size())) {
    const std::size_t value = key + kKey.size();
    text.replace(value, std::min(text.find('&', value), text.size()) - value, kMask);
  }
  return text;
}

// Everything after the first "password =".
std::string RedactTail(std::string text) {
  constexpr std::string_view kKey = "password";
  for (std::size_t at = 0; (at = text.find(kKey, at)) != std::string::npos;) {
    at += kKey.size();
    std::size_t value = at;
    while (value < text.size() && IsSpace(text[value])) ++value;
    if (value < text.size() && text[value] == '=') return text.substr(0, value + 1) + std::string(kMask);
  }
  return text;
}

}  // namespace

std::string RedactDsn(std::string_view dsn) {
  // USER:PASSWORD@HOST without its scheme: a mistake, and a secret all the same.
  if (const std::size_t at = dsn.rfind('@');
      at != std::string_view::npos && dsn.find("://") == std::string_view::npos && dsn.find('=') == std::string_view::npos)
    return std::string(kMask) + std::string(dsn.substr(at));
  const auto authority = AuthorityOf(dsn);
  if (authority && !authority->in_pairs) return RedactUri(std::string(dsn), *authority);
  const auto pairs = SplitPairs(dsn);
  if (!pairs ||
      !std::ranges::all_of(*pairs, [](const Pair& p) { return std::ranges::find(kKeywords, p.key) != std::end(kKeywords); }))
    return RedactTail(authority ? RedactUri(std::string(dsn), *authority) : std::string(dsn));
  std::string text(dsn);
  for (auto pair = pairs->rbegin(); pair != pairs->rend(); ++pair)
    if (pair->key.ends_with("password")) text.replace(pair->begin, pair->end - pair->begin, kMask);
  return text;
}

Result<void> CheckPostgresDsn(std::string_view dsn) {
  constexpr std::string_view kEncode =
      "in user and password '/' must be written as %2F, '@' as %40, ':' as %3A, '?' as %3F, '#' as %23";
  const auto authority = AuthorityOf(dsn);
  if (!authority || authority->in_pairs) {
    if (SplitPairs(dsn)) return {};
    return Fail(ErrorCode::kInvalidArgument,
                "is not a list of key=value; a value with spaces needs single quotes: password='two words'");
  }
  if (!IsClear(dsn, *authority)) return Fail(ErrorCode::kInvalidArgument, "has an '@' where none can be; {}", kEncode);
  std::string_view hosts = dsn.substr(authority->begin, authority->end - authority->begin);
  if (const auto at = hosts.find('@'); at != std::string_view::npos) hosts.remove_prefix(at + 1);
  if (!PortsAreNumbers(hosts)) return Fail(ErrorCode::kInvalidArgument, "has a port that is not a number; {}", kEncode);
  return {};
}

}  // namespace millrace
