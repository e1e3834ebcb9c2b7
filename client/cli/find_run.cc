#include "client/cli/find_run.h"

#include <algorithm>
#include <optional>

namespace millrace::cli {
namespace {

constexpr std::size_t kPrefixMin = 4, kDigits = 32;
constexpr std::uint32_t kCandidatesShown = 10, kBackfillsListed = 500;
constexpr std::size_t kTimeLength = 13;  // "0193e0c5-0000": the 48 bits of a UUIDv7's time

// The hexadecimal digits of an id or of its beginning; nothing when `text` is neither.
std::optional<std::string> Digits(std::string_view text) {
  std::string digits;
  for (const char c : text) {
    const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c;
    if (lower == '-') continue;
    if (!((lower >= '0' && lower <= '9') || (lower >= 'a' && lower <= 'f'))) return std::nullopt;
    digits += lower;
  }
  if (digits.size() < kPrefixMin || digits.size() > kDigits) return std::nullopt;
  return digits;
}

template <class Id>
Id FilledAs(std::string digits, char with) {
  digits.resize(kDigits, with);
  Id id;
  const auto value = [](char c) { return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10); };
  for (std::size_t i = 0; i < id.uuid.bytes.size(); ++i)
    id.uuid.bytes[i] = static_cast<std::uint8_t>((value(digits[2 * i]) << 4U) | value(digits[2 * i + 1]));
  return id;
}

RunId Filled(std::string digits, char with) { return FilledAs<RunId>(std::move(digits), with); }

// The next id in order; nothing after the last.
template <class Id>
std::optional<Id> Successor(Id id) {
  for (std::size_t i = id.uuid.bytes.size(); i-- > 0;)
    if (++id.uuid.bytes[i] != 0) return id;
  return std::nullopt;
}

std::string OfPipeline(const std::string& pipeline) {
  return pipeline.empty() ? "" : fmt::format(" of pipeline '{}'", pipeline);
}

std::unexpected<Error> Ambiguous(std::string_view text, const std::vector<RunSummary>& runs) {
  std::vector<RunId> ids;
  for (const RunSummary& run : runs) ids.push_back(run.spec.id);
  std::string list;
  for (std::size_t i = 0; i < std::min<std::size_t>(runs.size(), kCandidatesShown); ++i)
    list += fmt::format("\n  {}  {}  {}  {}", ids[i].ToString(), ToRfc3339(runs[i].spec.created_at), Name(runs[i].state),
                        runs[i].spec.pipeline);
  if (runs.size() > kCandidatesShown) list += "\n  ...";
  return Fail(ErrorCode::kInvalidArgument, "several runs begin with '{}': give {} characters of one of them, or 'last'{}", text,
              ShortIdLength(ids), list);
}

std::size_t ShortLength(std::vector<std::string> texts) {
  std::sort(texts.begin(), texts.end());
  std::size_t length = kTimeLength;
  for (std::size_t i = 1; i < texts.size(); ++i) {
    const auto [a, b] = std::mismatch(texts[i - 1].begin(), texts[i - 1].end(), texts[i].begin());
    const auto same = static_cast<std::size_t>(a - texts[i - 1].begin());
    length = std::min(std::max(length, same + 1), texts[i].size());
  }
  return length;
}

Result<void> CheckName(std::string_view text, std::string_view noun) {
  if (text == "last" || Digits(text)) return {};
  return Fail(ErrorCode::kInvalidArgument,
              "'{}' is not an id of a {}: give its first characters, at least {}, as 'millrace {} list' shows them, or 'last'",
              text, noun, kPrefixMin, noun);
}

// An id, and what tells people which one it is.
template <class Id>
struct Candidate {
  Id id;
  std::string about;
};

// `list`: the newest that are below an id, or of all.
template <class Id, class List>
Result<Id> FindBy(std::string_view text, std::string_view noun, const List& list) {
  MILLRACE_TRY(CheckName(text, noun));
  if (text == "last") {
    MILLRACE_TRY_ASSIGN(const std::vector<Candidate<Id>> newest, list(std::nullopt));
    if (newest.empty()) return Fail(ErrorCode::kNotFound, "there is no {} yet", noun);
    return newest.front().id;
  }
  const auto digits = Digits(text);
  if (digits->size() == kDigits) return FilledAs<Id>(*digits, '0');
  const Id lowest = FilledAs<Id>(*digits, '0'), highest = FilledAs<Id>(*digits, 'f');
  MILLRACE_TRY_ASSIGN(std::vector<Candidate<Id>> found, list(Successor(highest)));
  std::erase_if(found, [&](const Candidate<Id>& each) { return each.id < lowest || highest < each.id; });
  if (found.empty()) return Fail(ErrorCode::kNotFound, "no {} begins with '{}'", noun, text);
  if (found.size() == 1) return found.front().id;
  std::vector<std::string> ids;
  std::string shown;
  for (const auto& [id, about] : found) {
    ids.push_back(id.ToString());
    if (ids.size() <= kCandidatesShown) shown += fmt::format("\n  {}  {}", ids.back(), about);
  }
  return Fail(ErrorCode::kInvalidArgument, "several {}s begin with '{}': give {} characters of one of them, or 'last'{}{}",
              noun, text, ShortLength(std::move(ids)), shown, found.size() > kCandidatesShown ? "\n  ..." : "");
}

}  // namespace

std::optional<RunId> IdAfter(RunId run) { return Successor(run); }

std::size_t ShortIdLength(const std::vector<RunId>& runs) {
  std::vector<std::string> texts;
  for (const RunId& run : runs) texts.push_back(run.ToString());
  return ShortLength(std::move(texts));
}

Result<void> CheckRunName(std::string_view text) { return CheckName(text, "run"); }
Result<void> CheckJobName(std::string_view text) { return CheckName(text, "job"); }
Result<void> CheckBackfillName(std::string_view text) { return CheckName(text, "backfill"); }

Result<JobId> FindJob(Ledger& ledger, std::string_view text, MonoTime deadline) {
  return FindBy<JobId>(text, "job", [&](std::optional<JobId> before) -> Result<std::vector<Candidate<JobId>>> {
    JobFilter filter;
    filter.before = before;
    filter.limit = kCandidatesShown + 1;
    MILLRACE_TRY_ASSIGN(const auto jobs, ledger.ListJobs(filter, deadline));
    std::vector<Candidate<JobId>> found;
    for (const JobSummary& job : jobs)
      found.push_back({job.spec.id, fmt::format("{}  {}{}{}", job.outcome ? Name(job.outcome->state) : "live", job.spec.kind,
                                                job.spec.stage.empty() ? "" : "  ", job.spec.stage)});
    return found;
  });
}

Result<BackfillId> FindBackfill(Ledger& ledger, std::string_view text, MonoTime deadline) {
  return FindBy<BackfillId>(text, "backfill", [&](std::optional<BackfillId>) -> Result<std::vector<Candidate<BackfillId>>> {
    BackfillFilter filter;
    filter.org = kDefaultOrg;
    filter.limit = kBackfillsListed;
    MILLRACE_TRY_ASSIGN(const auto all, ledger.Backfills(filter, deadline));
    std::vector<Candidate<BackfillId>> found;
    for (const BackfillState& state : all)
      found.push_back({state.row.id, fmt::format("{}  {}", ToRfc3339(state.row.created_at), state.row.pipeline)});
    return found;
  });
}

Result<RunId> FindRun(Ledger& ledger, std::string_view text, const std::string& pipeline, MonoTime deadline) {
  RunFilter filter;
  if (!pipeline.empty()) filter.pipeline = pipeline;
  if (text == "last") {
    filter.limit = 1;
    MILLRACE_TRY_ASSIGN(const auto runs, ledger.ListRuns(filter, deadline));
    if (runs.empty()) return Fail(ErrorCode::kNotFound, "there is no run{} yet", OfPipeline(pipeline));
    return runs.front().spec.id;
  }
  MILLRACE_TRY(CheckRunName(text));
  const auto digits = Digits(text);
  if (digits->size() == kDigits && pipeline.empty()) return Filled(*digits, '0');
  const RunId lowest = Filled(*digits, '0');
  filter.before = Successor(Filled(*digits, 'f'));
  filter.limit = kCandidatesShown + 1;
  MILLRACE_TRY_ASSIGN(auto runs, ledger.ListRuns(filter, deadline));
  std::erase_if(runs, [&](const RunSummary& run) { return run.spec.id < lowest; });
  if (runs.empty()) return Fail(ErrorCode::kNotFound, "no run{} begins with '{}'", OfPipeline(pipeline), text);
  if (runs.size() > 1) return Ambiguous(text, runs);
  return runs.front().spec.id;
}

}  // namespace millrace::cli
