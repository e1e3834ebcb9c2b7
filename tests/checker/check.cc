#include "tests/checker/check.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/crypto/checkpoint.h"
#include "common/ledger/audit_verify.h"
#include "common/ledger/ledger.h"
#include "common/model/cron.h"
#include "tests/checker/checker.h"

namespace millrace::checker {
namespace {

using Json = nlohmann::json;

constexpr int kTextsPerCode = 5;
constexpr std::size_t kUnreadableShown = 5;
constexpr std::size_t kSlotsMax = 1'000'000;
constexpr Millis kLedgerTimeout{120'000};
constexpr std::string_view kNames[kInvariants] = {"S1  every accepted job has one end, or can still be found",
                                                  "S2  at most one effect per effect key",
                                                  "S3  terminal states never change",
                                                  "S4  tokens increase, nothing of an old one is accepted",
                                                  "S5  no row of another org",
                                                  "S6  the audit trail verifies",
                                                  "S7  no two leases for one job",
                                                  "S8  a slot fires exactly once",
                                                  "S9  read = loaded + filtered + quarantined + deduplicated",
                                                  "S10 an empty or failed extract truncates nothing"};

std::int64_t Number(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number() ? found->get<std::int64_t>() : 0;
}

}  // namespace

bool Report::Has(std::string_view code) const {
  return std::ranges::any_of(violations, [&](const Violation& v) { return v.code == code; });
}

int Report::ExitCode() const {
  if (!violations.empty()) return 1;
  return unreadable.empty() ? 0 : 2;
}

Result<Report> Check(const Inputs& inputs) { return Checker(inputs).Run(); }

Result<Report> Checker::Run() {
  MILLRACE_TRY_ASSIGN(Database ledger, Database::Open(inputs_.ledger));
  if (!inputs_.history.empty()) {
    MILLRACE_TRY_ASSIGN(history_, ReadHistory(inputs_.history));
  }
  MILLRACE_TRY_ASSIGN(facts_, ReadFacts(ledger));
  for (const AttemptFact& attempt : facts_.attempts) attempts_.emplace(attempt.job, attempt.token);
  out_.operations = static_cast<std::int64_t>(history_.operations.size());
  out_.files = static_cast<std::int64_t>(history_.files);
  out_.torn = static_cast<std::int64_t>(history_.torn);
  out_.unreadable = history_.unreadable;
  MILLRACE_TRY(ReadAccepted());
  ReadTold();
  Accepted();
  RunsAndOpenJobs();
  Attempts();
  Orgs();
  MILLRACE_TRY(Slots());
  MILLRACE_TRY(Stages());
  MILLRACE_TRY(Witness());
  if (!inputs_.destination.empty()) MILLRACE_TRY(Destination());
  Writes();
  Fires();
  Epochs();
  Grants();
  Receipts();
  Leases();
  Ends();
  Loads();
  if (!inputs_.skip_audit) MILLRACE_TRY(Audit());
  const auto count = [&](std::string_view code) { return std::ranges::count(out_.violations, code, &Violation::code); };
  out_.lost = count("lost");
  out_.doubled = count("doubled");
  out_.stale_accepted = count("stale_accepted");
  return std::move(out_);
}

Result<void> Checker::ReadAccepted() {
  if (inputs_.accepted.empty()) return {};
  std::ifstream in(inputs_.accepted);
  if (!in) return Fail(ErrorCode::kNotFound, "cannot read {}", inputs_.accepted);
  for (std::string text; std::getline(in, text);) {
    const Json line = Json::parse(text, nullptr, false);
    const bool is_run = line.is_object() && line.contains("run");
    const auto id = line.is_object() ? Uuid::Parse(line.value(is_run ? "run" : "job", "")) : Uuid::Parse("");
    if (!id) return Fail(ErrorCode::kCorrupt, "{}: '{}' is no accepted job or run", inputs_.accepted, text);
    told_[*id] = {.redis = line.value("class", "ledger") == "redis", .at = line.value("at", std::int64_t{0}), .is_run = is_run};
  }
  return {};
}

// S1 for what somebody was told.
void Checker::Accepted() {
  for (const auto& [id, told] : told_) {
    if (told.is_run) continue;
    ++out_.accepted;
    out_.redis_accepted += told.redis ? 1 : 0;
    Looked(1);
    const bool exposed = told.redis && told.at && std::ranges::any_of(inputs_.redis_may_lose, [&](const Window& window) {
                           return window.from <= *told.at && *told.at <= window.to;
                         });
    out_.redis_exposed += exposed ? 1 : 0;
    if (facts_.outcomes.contains(id)) {
      ++out_.done;
      continue;
    }
    if (told.redis) {
      if (!inputs_.ended)
        ++out_.open;
      else if (exposed)
        ++out_.redis_lost;
      else
        Add(1, "lost", "job {} of class redis was accepted and has no outcome", id.ToString());
      continue;
    }
    if (!facts_.jobs.contains(id) && !facts_.pruned)
      Add(1, "lost", "job {} was accepted and the ledger has no row of it", id.ToString());
    else
      ++out_.open;  // RunsAndOpenJobs says whether it may be
  }
  for (const auto& [id, job] : facts_.jobs) {
    if (told_.contains(id)) continue;
    ++out_.accepted;
    ++(facts_.outcomes.contains(id) ? out_.done : out_.open);
  }
  for (const auto& [id, told] : told_) {
    if (!told.is_run) continue;
    Looked(1);
    if (!facts_.runs.contains(id) && !facts_.pruned)
      Add(1, "lost", "run {} was accepted and the ledger has no row of it", id.ToString());
  }
}

// S1 for what has no end yet: it must be among what an owner's rebuild reads.
void Checker::RunsAndOpenJobs() {
  out_.runs = static_cast<std::int64_t>(facts_.runs.size());
  for (const auto& [id, job] : facts_.jobs) {
    Looked(1);
    if (facts_.outcomes.contains(id)) continue;
    if (inputs_.ended)
      Add(1, "lost", "job {} ({}) has not ended", id.ToString(), job.stage.empty() ? job.kind : job.stage);
    else if (!job.run && !facts_.live_jobs.contains(id))
      Add(1, "lost", "job {} has not ended and no rebuild would find it", id.ToString());
    else if (job.run && facts_.run_outcomes.contains(*job.run))
      Add(1, "lost", "job {} ({}) has not ended, its run {} has", id.ToString(), job.stage, job.run->ToString());
  }
  for (const auto& [id, run] : facts_.runs) {
    Looked(1);
    if (facts_.run_outcomes.contains(id)) continue;
    if (inputs_.ended)
      Add(1, "lost", "run {} ({}) has not ended", id.ToString(), run.pipeline);
    else if (!facts_.live_runs.contains(id) && !facts_.pruned)
      Add(1, "lost", "run {} ({}) has not ended and no rebuild would find it", id.ToString(), run.pipeline);
  }
  if (inputs_.ended && facts_.outbox > 0) Add(1, "lost", "{} rows are left in the outbox", facts_.outbox);
}

// S3 and S4 in the ledger: one outcome per job is its primary key; no attempt has a token that is not below the outcome's.
void Checker::Attempts() {
  out_.attempts = static_cast<std::int64_t>(facts_.attempts.size());
  Looked(3, facts_.outcomes.size());
  for (const AttemptFact& attempt : facts_.attempts) {
    Looked(4);
    const auto outcome = facts_.outcomes.find(attempt.job);
    if (outcome != facts_.outcomes.end() && outcome->second.token != 0 && attempt.token >= outcome->second.token)
      Add(4, "token_order", "job {}: an attempt has token {}, its outcome {}", attempt.job.ToString(), attempt.token,
          outcome->second.token);
  }
  for (const auto& [id, job] : facts_.jobs) {
    if (!job.run || facts_.outcomes.contains(id)) continue;
    const auto ended = facts_.run_outcomes.find(*job.run);
    if (ended != facts_.run_outcomes.end() && ended->second.second == kStateSucceeded)
      Add(3, "terminal", "run {} succeeded, its job {} has no outcome", job.run->ToString(), id.ToString());
  }
}

void Checker::Orgs() {
  const auto same = [&](std::string_view what, Uuid id, std::int64_t mine, std::int64_t theirs) {
    Looked(5);
    if (mine != theirs) Add(5, "org", "{} of {} is of org {}, that of org {}", what, id.ToString(), mine, theirs);
  };
  for (const auto& [id, outcome] : facts_.outcomes)
    if (const auto job = facts_.jobs.find(id); job != facts_.jobs.end()) same("the outcome", id, outcome.org, job->second.org);
  for (const AttemptFact& attempt : facts_.attempts)
    if (const auto job = facts_.jobs.find(attempt.job); job != facts_.jobs.end())
      same("an attempt", attempt.job, attempt.org, job->second.org);
  for (const auto& [id, job] : facts_.jobs)
    if (const auto run = job.run ? facts_.runs.find(*job.run) : facts_.runs.end(); run != facts_.runs.end() && run->second.org)
      same("a job", run->first, job.org, run->second.org);
  for (const auto& [id, ended] : facts_.run_outcomes)
    if (const auto run = facts_.runs.find(id); run != facts_.runs.end()) same("the outcome", id, ended.first, run->second.org);
}

Result<void> Checker::Slots() {
  std::map<std::pair<std::string, std::string>, std::multiset<std::int64_t>> fired;
  std::map<Uuid, const SlotFact*> of_run;
  out_.slots = static_cast<std::int64_t>(facts_.slots.size());
  for (const SlotFact& slot : facts_.slots) {
    Looked(8);
    const std::string name = fmt::format("{} {}", slot.pipeline, ToRfc3339(FromUnixMicros(slot.slot)));
    if (slot.run && !of_run.emplace(*slot.run, &slot).second) Add(8, "slot", "{}: its run is another slot's too", name);
    const bool is_there = slot.run && facts_.runs.contains(*slot.run);
    if (slot.state == "fired" && !is_there && !facts_.pruned) Add(8, "slot", "{} fired and has no run", name);
    if (slot.state != "fired" && slot.reason.empty()) Add(8, "slot", "{} is {} without a reason", name, slot.state);
    if (slot.generation == 0 && slot.state == "fired") fired[{slot.pipeline, slot.schedule}].insert(slot.slot);
    if (slot.generation == 0 && slot.state != "fired" && inputs_.contiguous_slots)
      Add(8, "slot", "{} is {} ({})", name, slot.state, slot.reason);
  }
  for (const auto& [id, run] : facts_.runs) {
    if (!run.slot || run.repeats) continue;
    Looked(8);
    const auto slot = of_run.find(id);
    if (slot == of_run.end())
      Add(8, "slot", "{} {}: run {} is a second one of its slot", run.pipeline, ToRfc3339(FromUnixMicros(*run.slot)),
          id.ToString());
    else if (slot->second->slot != *run.slot || slot->second->generation != run.generation)
      Add(8, "slot", "run {} is of another slot than the one that fired it", id.ToString());
  }
  if (!inputs_.contiguous_slots) return {};
  if (inputs_.slots.to != 0)
    for (const auto& [schedule, spec] : facts_.schedules)
      if (spec.active) fired[schedule];
  for (const auto& [schedule, there] : fired) ContiguousSlots(schedule.first, schedule.second, there);
  return {};
}

// Every instant of the schedule, as cron arithmetic has it, is one slot. None of it has fired: from and to are asked for.
void Checker::ContiguousSlots(std::string_view pipeline, std::string_view schedule, const std::multiset<std::int64_t>& there) {
  const auto spec = facts_.schedules.find({std::string(pipeline), std::string(schedule)});
  if (spec == facts_.schedules.end()) return Add(8, "slot", "{}: its schedule is gone", pipeline);
  const auto rule = ParseDstRule(spec->second.dst);
  const auto cron = CronSchedule::Make(spec->second.cron, spec->second.timezone, rule.value_or(DstRule::kOnce));
  if (!cron) return Add(8, "slot", "{}: {}", pipeline, cron.error().message);
  std::int64_t after = there.empty() ? inputs_.slots.from : *there.begin() - 1;
  std::int64_t until = there.empty() ? inputs_.slots.to : *there.rbegin();
  if (inputs_.slots.to != 0 && spec->second.active) {
    after = std::min(after, inputs_.slots.from);
    until = std::max(until, inputs_.slots.to);
  }
  const auto due = cron->Between(FromUnixMicros(after), FromUnixMicros(until), kSlotsMax);
  for (const WallTime slot : due) {
    Looked(8);
    if (there.count(ToUnixMicros(slot)) != 1) Add(8, "slot", "{} {} is missing", pipeline, ToRfc3339(slot));
  }
  if (due.size() != there.size()) Add(8, "slot", "{}: {} slots, {} were due", pipeline, there.size(), due.size());
}

// S9 and S10 from what succeeded stages reported.
Result<void> Checker::Stages() {
  MILLRACE_TRY_ASSIGN(Database ledger, Database::Open(inputs_.ledger));
  MILLRACE_TRY_ASSIGN(const auto rows, ledger.Ask("select j.job, o.result, j.payload from job j join outcome o on o.job = j.job"
                                                  " where j.kind = 'stage' and o.state = 10"));
  for (const Row& row : rows) Stage(row[0].Id(), row[1].bytes, row[2].bytes);
  for (const auto& [id, job] : facts_.jobs) {
    const auto outcome = facts_.outcomes.find(id);
    if (outcome == facts_.outcomes.end() || outcome->second.state != kStateSucceeded) continue;
    if (job.options.find("\"all_ended\"") != std::string::npos) continue;  // it asked to run whatever came before
    Looked(10);
    for (const Uuid& needed : job.depends_on)
      if (const auto before = facts_.outcomes.find(needed);
          before == facts_.outcomes.end() ? !facts_.pruned : before->second.state != kStateSucceeded)
        Add(10, "truncated", "job {} ({}) succeeded although job {}, which it needs, did not", id.ToString(), job.stage,
            needed.ToString());
  }
  // S2 by what the loads themselves say: one of an effect wrote, every other found its receipt.
  std::map<std::string, Uuid> wrote;
  for (const Row& row : rows) {
    const Uuid id = row[0].Id();
    const Json result = Json::parse(row[1].bytes, nullptr, false);
    const std::string& effect = facts_.jobs[id].effect;
    if (effect.empty() || !result.is_object() || result.value("target", "").empty() || result.value("already_applied", false))
      continue;
    Looked(2);
    if (const auto [first, fresh] = wrote.emplace(effect, id); !fresh)
      Add(2, "doubled", "effect {}: jobs {} and {} both wrote it", effect, first->second.ToString(), id.ToString());
  }
  return {};
}

void Checker::Stage(Uuid job, const std::string& result_text, const std::string& payload_text) {
  const Json result = Json::parse(result_text, nullptr, false);
  const auto rows = result.is_object() ? result.find("rows") : result.end();
  if (!result.is_object() || rows == result.end()) return;
  Looked(9);
  const std::int64_t read = Number(*rows, "read"), loaded = Number(*rows, "loaded");
  if (read != loaded + Number(*rows, "filtered") + Number(*rows, "quarantined") + Number(*rows, "deduplicated"))
    Add(9, "counts", "job {} ({}): {}", job.ToString(), facts_.jobs[job].stage, rows->dump());
  if (read != 0) return;
  const Json payload = Json::parse(payload_text, nullptr, false);
  if (!payload.is_object() || !payload.contains("stage")) return;
  for (const char* work : {"extract", "load"}) {
    const auto spec = payload["stage"].find(work);
    if (spec == payload["stage"].end() || !spec->is_object() || spec->value("allow_empty", false)) continue;
    Looked(10);
    if (work == std::string_view("extract") || spec->value("mode", "") == "replace")
      Add(10, "truncated", "job {} ({}): an empty {} succeeded", job.ToString(), facts_.jobs[job].stage, work);
  }
}

// The witness knows nothing of Millrace: each attempt that did its work wrote one line.
Result<void> Checker::Witness() {
  if (inputs_.witness.empty()) return {};
  std::map<Uuid, std::vector<std::int64_t>> seen;
  std::ifstream in(inputs_.witness);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string id;
    std::int64_t token = 0;
    const bool read = static_cast<bool>(words >> id >> token);
    const auto job = Uuid::Parse(id);
    if (!read || !job) return Fail(ErrorCode::kCorrupt, "{}: '{}' is no line of a witness", inputs_.witness, line);
    seen[*job].push_back(token);
    ++out_.witnessed;
  }
  for (const auto& [id, told] : told_) {
    const auto outcome = facts_.outcomes.find(id);
    if (told.is_run || outcome == facts_.outcomes.end() || outcome->second.state != kStateSucceeded) continue;
    const auto lines = seen.find(id);
    if (lines == seen.end() || std::ranges::count(lines->second, outcome->second.token) == 0)
      Add(1, "lost", "job {}: its outcome names token {}, which did nothing", id.ToString(), outcome->second.token);
  }
  for (const auto& [id, tokens] : seen) {
    Looked(2);
    Looked(4);
    if (std::set<std::int64_t>(tokens.begin(), tokens.end()).size() != tokens.size())
      Add(2, "doubled", "job {}: one attempt did its work twice: tokens {}", id.ToString(), fmt::join(tokens, ", "));
    const auto outcome = facts_.outcomes.find(id);
    if (outcome != facts_.outcomes.end() && std::ranges::max(tokens) > outcome->second.token)
      Add(4, "token_order", "job {}: token {} ran although token {} had ended it", id.ToString(), std::ranges::max(tokens),
          outcome->second.token);
  }
  return {};
}

// S4 at the sink: once a newer attempt has raised the fence, nothing of an older one is published.
Result<void> Checker::Destination() {
  MILLRACE_TRY_ASSIGN(Database destination, Database::Open(inputs_.destination));
  const std::string prefix = destination.postgres() ? "millrace." : "millrace_";
  MILLRACE_TRY_ASSIGN(
      const auto there,
      destination.Ask(destination.postgres() ? "select count(to_regclass('millrace.receipt'))"
                                             : "select count(*) from sqlite_master where name = 'millrace_receipt'"));
  if (there[0][0].number == 0) return {};  // nothing was ever loaded into it
  const std::string later =
      inputs_.destination_steps_back == 0
          ? std::string()
          : fmt::format(
                " + case when r.published_at between timestamptz 'epoch' + interval '{} microseconds' and"
                " timestamptz 'epoch' + interval '{} microseconds' then interval '{} microseconds'"
                " else interval '0' end",
                inputs_.destination_stepped.from, inputs_.destination_stepped.to, inputs_.destination_steps_back);
  MILLRACE_TRY_ASSIGN(const auto late,
                      destination.Ask(fmt::format("select r.effect, r.token, f.token from {0}receipt r join {0}fence f on"
                                                  " f.effect = r.effect where r.token > f.token"
                                                  " or (r.token < f.token and r.published_at > f.raised_at{1})",
                                                  prefix, later)));
  for (const Row& row : late)
    Add(4, "stale_accepted", "effect {}: token {} published after token {} had raised the fence", row[0].bytes, row[1].number,
        row[2].number);
  MILLRACE_TRY_ASSIGN(const auto receipts, destination.Ask(fmt::format("select count(*) from {}receipt", prefix)));
  Looked(4, static_cast<std::size_t>(receipts[0][0].number));
  if (destination.postgres()) {
    MILLRACE_TRY_ASSIGN(const auto staging,
                        destination.Ask("select s.name from millrace.staging s join millrace.receipt r on r.effect = s.effect"
                                        " where s.created_at < now() - interval '10 minutes'"));
    for (const Row& row : staging) Add(4, "stale_accepted", "staging {} is left", row[0].bytes);
  }
  for (const AppendTarget& target : inputs_.targets) MILLRACE_TRY(Target(destination, target));
  return {};
}

// S2 where nothing but the receipt helps: a table without a unique key, every row with its effect and token.
Result<void> Checker::Target(Database& destination, const AppendTarget& target) {
  const std::string receipt = destination.postgres() ? "millrace.receipt" : "millrace_receipt";
  MILLRACE_TRY_ASSIGN(const auto rows,
                      destination.Ask(fmt::format("select a._millrace_effect, count(*), count(distinct a._millrace_token),"
                                                  " min(a._millrace_token), max(r.token) from {} a"
                                                  " left join {} r on r.effect = a._millrace_effect group by 1",
                                                  target.table, receipt)));
  std::set<std::string> expected;
  for (const auto& [id, job] : facts_.jobs)
    if (const auto outcome = facts_.outcomes.find(id);
        !job.effect.empty() && outcome != facts_.outcomes.end() && outcome->second.state == kStateSucceeded)
      expected.insert(job.effect);
  for (const Row& row : rows) {
    Looked(2);
    ++out_.effects;
    out_.effect_rows += row[1].number;
    const std::string& effect = row[0].bytes;
    if (row[1].number > target.rows_per_effect || row[2].number > 1)
      Add(2, "doubled", "effect {}: {} rows of {} attempts, {} were expected", effect, row[1].number, row[2].number,
          target.rows_per_effect);
    else if (row[1].number < target.rows_per_effect)
      Add(1, "lost", "effect {}: {} rows, {} were expected", effect, row[1].number, target.rows_per_effect);
    if (row[4].null || row[4].number != row[3].number)
      Add(2, "receipt", "effect {}: its rows are of token {}, its receipt of {}", effect, row[3].number,
          row[4].null ? 0 : row[4].number);
    if (inputs_.ended && !expected.contains(effect)) Add(2, "doubled", "effect {} has rows but no job that succeeded", effect);
  }
  // The other way round: which effects belong to this table, its receipts say.
  MILLRACE_TRY_ASSIGN(const auto missing, destination.Ask(fmt::format(
                                              "select r.effect from {} r where r.target like '%{}' and r.rows_loaded > 0 and"
                                              " r.effect not in (select _millrace_effect from {})",
                                              receipt, target.table, target.table)));
  for (const Row& row : missing) Add(1, "lost", "effect {} has a receipt and no rows", row[0].bytes);
  return {};
}

Result<void> Checker::Audit() {
  const SystemClock clock;
  SystemRandom random;
  IdGenerator ids(clock, random);
  std::error_code ec;
  const bool file = std::filesystem::exists(inputs_.ledger, ec);
  const LedgerOptions options{.dsn = file ? std::filesystem::absolute(inputs_.ledger).string() : inputs_.ledger,
                              .clock = &clock,
                              .writer = ids.Next<AuditWriterId>(),
                              .shard_count = 1,
                              .actor = "history check"};
  std::optional<CheckpointSet> checkpoints;
  AuditVerifyOptions verify;
  if (!inputs_.checkpoints.empty()) {
    if (!std::filesystem::exists(inputs_.public_key, ec))
      return Fail(ErrorCode::kNotFound, "--public-key '{}' is not there: without it the checkpoints in {} prove nothing",
                  inputs_.public_key, inputs_.checkpoints);
    MILLRACE_TRY_ASSIGN(const PublicKey key, ReadPublicKey(inputs_.public_key));
    MILLRACE_TRY_ASSIGN(checkpoints, ReadCheckpoints(inputs_.checkpoints, key));
    verify.key = key;
  }
  const MonoTime deadline = clock.Now() + kLedgerTimeout;
  MILLRACE_TRY_ASSIGN(const auto ledger, file ? OpenSqliteLedger(options, deadline) : OpenPostgresLedger(options, deadline));
  MILLRACE_TRY_ASSIGN(const AuditReport report, VerifyAudit(*ledger, checkpoints ? &*checkpoints : nullptr, verify));
  Looked(6, report.rows);
  if (checkpoints) out_.checkpoints = static_cast<std::int64_t>(report.checkpoints);
  if (!report.ok)
    Add(6, "audit", "{}", report.first_bad ? report.first_bad->explanation : std::string("the audit trail does not verify"));
  return {};
}

std::string Text(const Report& r) {
  std::string out = fmt::format(
      "accepted {}, done {}, open {}, lost {}, doubled {}, stale accepted {}; class redis: accepted {}, {} of them in a window "
      "of loss, {} of those lost\n"
      "{} runs, {} slots, {} attempts; {} effects with {} rows; {} lines of witnesses; {} operations of {} processes\n",
      r.accepted, r.done, r.open, r.lost, r.doubled, r.stale_accepted, r.redis_accepted, r.redis_exposed, r.redis_lost, r.runs,
      r.slots, r.attempts, r.effects, r.effect_rows, r.witnessed, r.operations, r.files);
  out += fmt::format("workers received {} grants, {} of them after a newer one of the same job\n", r.received, r.overtaken);
  out += fmt::format(
      "histories: {} torn last lines, {} unreadable lines; audit trail: {}\n", r.torn, r.unreadable.size(),
      r.checkpoints ? fmt::format("verified against {} checkpoints", *r.checkpoints) : std::string("no checkpoints looked at"));
  for (std::size_t i = 0; i < std::min(r.unreadable.size(), kUnreadableShown); ++i)
    out += fmt::format("UNREADABLE {}\n", r.unreadable[i]);
  for (std::size_t i = 0; i < kInvariants; ++i) {
    const auto bad = std::ranges::count(r.violations, static_cast<int>(i + 1), &Violation::invariant);
    const std::string verdict = bad > 0               ? fmt::format("VIOLATED {} times", bad)
                                : r.looked_at[i] == 0 ? std::string("nothing to look at")
                                                      : fmt::format("holds ({} looked at)", r.looked_at[i]);
    out += fmt::format("{:<60} {}\n", kNames[i], verdict);
  }
  std::map<std::string, int> shown;
  for (const Violation& v : r.violations)
    if (++shown[v.code] <= kTextsPerCode) out += fmt::format("VIOLATION S{} {}: {}\n", v.invariant, v.code, v.text);
  return out;
}

}  // namespace millrace::checker
