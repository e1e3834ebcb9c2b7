#include "tests/chaos/checker.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "common/model/cron.h"
#include "common/model/job.h"

namespace millrace::chaos {
namespace {

constexpr Millis kVerifyTimeout{120'000};
constexpr int kTextsPerCode = 5;

struct Outcome {
  std::int64_t token = 0;
  JobState state = JobState::kDead;
  WallTime recorded_at{};
};

class Checker {
 public:
  Checker(Cluster& cluster, Observer& observer, const Rounds& rounds, const std::map<JobId, Accepted>& accepted)
      : cluster_(cluster), observer_(observer), rounds_(rounds), accepted_(accepted) {}

  Result<Findings> Run() {
    MILLRACE_TRY(ReadOutcomes());
    for (const std::string_view pipeline : {kAppendPipeline, kMergePipeline}) MILLRACE_TRY(Slots(pipeline));
    MILLRACE_TRY(RunsAndJobs());
    MILLRACE_TRY(AppendedRows());
    MILLRACE_TRY(MergedRows());
    MILLRACE_TRY(Fences());
    MILLRACE_TRY(SingleJobs());
    MILLRACE_TRY(Tokens());
    MILLRACE_TRY(Audit());
    MILLRACE_TRY(Times());
    out_.lost = std::ranges::count(out_.violations, "lost", &Violation::code);
    return std::move(out_);
  }

 private:
  template <class... Args>
  void Add(std::string_view code, fmt::format_string<Args...> format, Args&&... args) {
    out_.violations.push_back({std::string(code), fmt::format(format, std::forward<Args>(args)...)});
  }

  // One violation per row: `sql` selects texts.
  Result<void> NoRows(bool warehouse, std::string_view code, std::string_view what, std::string_view sql) {
    MILLRACE_TRY_ASSIGN(const PgResult found, warehouse ? observer_.Warehouse(sql) : observer_.Ledger(sql));
    for (int i = 0; i < found.rows(); ++i) Add(code, "{}: {}", what, found.Text(i, 0));
    return {};
  }
  Result<std::int64_t> Count(bool warehouse, std::string_view sql) {
    MILLRACE_TRY_ASSIGN(const PgResult found, warehouse ? observer_.Warehouse(sql) : observer_.Ledger(sql));
    return found.Int(0, 0);
  }

  Result<void> ReadOutcomes() {
    MILLRACE_TRY_ASSIGN(const PgResult found, observer_.Ledger("select job, token, state, recorded_at from millrace.outcome"));
    for (int i = 0; i < found.rows(); ++i)
      outcomes_[JobId{found.Id(i, 0)}] = {
          .token = found.Int(i, 1), .state = static_cast<JobState>(found.Int(i, 2)), .recorded_at = found.Time(i, 3)};
    MILLRACE_TRY_ASSIGN(out_.attempts_lost, Count(false, "select count(*) from millrace.attempt where ended = 6"));
    return {};
  }

  // S8: every instant of the schedule, as cron arithmetic has it, is one slot, and it fired.
  Result<void> Slots(std::string_view pipeline) {
    MILLRACE_TRY_ASSIGN(const PgResult found,
                        observer_.Ledger(fmt::format("select slot, state, reason, run from millrace.slot"
                                                     " where pipeline = '{}' and generation = 0 order by slot",
                                                     pipeline)));
    MILLRACE_TRY_ASSIGN(const CronSchedule cron,
                        CronSchedule::Make(pipeline == kAppendPipeline ? kAppendCron : kMergeCron, "UTC", DstRule::kOnce));
    if (found.rows() < 2) Add("slot", "{}: only {} slots", pipeline, found.rows());
    if (found.rows() == 0) return {};
    std::multiset<WallTime> there;
    for (int i = 0; i < found.rows(); ++i) {
      there.insert(found.Time(i, 0));
      if (found.Bytes(i, 1) != "fired" || found.IsNull(i, 3))
        Add("slot", "{} {}: {} ({})", pipeline, ToRfc3339(found.Time(i, 0)), found.Bytes(i, 1), found.Bytes(i, 2));
    }
    const auto due = cron.Between(*there.begin() - Micros{1}, *there.rbegin(), 1'000'000);
    for (const WallTime slot : due)
      if (there.count(slot) != 1) Add("slot", "{} {}: {} rows", pipeline, ToRfc3339(slot), there.count(slot));
    if (due.size() != there.size()) Add("slot", "{}: {} slots, {} were due", pipeline, there.size(), due.size());
    out_.slots += found.rows();
    return {};
  }

  Result<void> RunsAndJobs() {
    MILLRACE_TRY(NoRows(false, "slot", "a slot has not exactly one run",
                        "select s.pipeline || ' ' || s.slot || ': ' || count(r.run) || ' runs'"
                        " from millrace.slot s left join millrace.run r on r.pipeline = s.pipeline and r.slot = s.slot and "
                        "r.generation = s.generation"
                        " group by s.pipeline, s.slot having count(r.run) <> 1"));
    MILLRACE_TRY(NoRows(false, "slot", "a run is not its slot's",
                        "select r.run::text from millrace.run r"
                        " where not exists (select 1 from millrace.slot s where s.run = r.run)"));
    MILLRACE_TRY(NoRows(false, "lost", "a run has not ended",
                        "select r.run || ' (' || r.pipeline || ')' from millrace.run r"
                        " where not exists (select 1 from millrace.run_outcome o where o.run = r.run)"));
    MILLRACE_TRY(NoRows(false, "lost", "a job of a run has not ended",
                        "select j.job || ' (' || j.stage || ')' from millrace.job j"
                        " where j.run is not null and not exists (select 1 from millrace.outcome o where o.job = j.job)"));
    MILLRACE_TRY(NoRows(false, "run_failed", "a run did not succeed",
                        "select r.pipeline || ' ' || r.run || ': ' || o.reason"
                        " from millrace.run r join millrace.run_outcome o using (run) where o.state <> 10"));
    MILLRACE_TRY(NoRows(
        false, "counts", "read = loaded + filtered + quarantined + deduplicated does not hold (S9)",
        "select j.job || ' (' || j.stage || '): ' || convert_from(o.result, 'UTF8')"
        " from millrace.job j join millrace.outcome o using (job),"
        " lateral (select convert_from(o.result, 'UTF8')::jsonb -> 'rows' as r) x where j.run is not null and o.state = 10"
        " and ((r ->> 'read')::bigint = (r ->> 'loaded')::bigint + (r ->> 'filtered')::bigint"
        " + (r ->> 'quarantined')::bigint + (r ->> 'deduplicated')::bigint) is not true"));
    MILLRACE_TRY(NoRows(false, "lost", "still in the outbox", "select item::text from millrace.outbox"));
    MILLRACE_TRY_ASSIGN(out_.runs, Count(false, "select count(*) from millrace.run"));
    MILLRACE_TRY_ASSIGN(out_.runs_succeeded, Count(false, "select count(*) from millrace.run_outcome where state = 10"));
    return {};
  }

  // S2 where nothing but the receipt helps: a table without a unique key, every row with its effect and token.
  Result<void> AppendedRows() {
    MILLRACE_TRY_ASSIGN(const PgResult runs, observer_.Ledger(fmt::format(
                                                 "select j.effect from millrace.run r join millrace.run_outcome o using (run)"
                                                 " join millrace.job j on j.run = r.run and j.stage = 'target'"
                                                 " where r.pipeline = '{}' and o.state = 10",
                                                 kAppendPipeline)));
    std::set<std::string> expected;
    for (int i = 0; i < runs.rows(); ++i) expected.insert(runs.Text(i, 0));
    MILLRACE_TRY_ASSIGN(
        const PgResult rows,
        observer_.Warehouse("select _millrace_effect, count(*), count(distinct _millrace_token), count(distinct id),"
                            " min(_millrace_token) from wh.appended group by 1"));
    std::set<std::string> there;
    for (int i = 0; i < rows.rows(); ++i) {
      const std::string effect = rows.Text(i, 0);
      there.insert(effect);
      out_.effect_rows += rows.Int(i, 1);
      if (rows.Int(i, 1) > kRowsPerEffect || rows.Int(i, 2) > 1) {
        ++out_.doubled;
        Add("doubled", "effect {}: {} rows of {} attempts, {} were expected", effect, rows.Int(i, 1), rows.Int(i, 2),
            kRowsPerEffect);
      } else if (rows.Int(i, 1) < kRowsPerEffect || rows.Int(i, 3) != kRowsPerEffect) {
        Add("lost", "effect {}: {} rows, {} were expected", effect, rows.Int(i, 1), kRowsPerEffect);
      }
      if (!expected.contains(effect)) Add("doubled", "effect {} has rows but no run that succeeded", effect);
    }
    for (const std::string& effect : expected)
      if (!there.contains(effect)) Add("lost", "effect {} succeeded and has no rows", effect);
    out_.effects = static_cast<std::int64_t>(there.size());
    return {};
  }

  Result<void> MergedRows() {
    MILLRACE_TRY_ASSIGN(
        const PgResult rows,
        observer_.Warehouse("select count(*), count(*) filter (where amount <> (id + 0.5) * 2) from wh.merged"));
    if (rows.Int(0, 0) != kRowsPerEffect || rows.Int(0, 1) != 0)
      Add("doubled", "the merged table has {} rows, {} of them wrong", rows.Int(0, 0), rows.Int(0, 1));
    return {};
  }

  // S4 at the sink: once a newer attempt has raised the fence, nothing of an older one is published.
  Result<void> Fences() {
    MILLRACE_TRY(NoRows(true, "stale_accepted", "published by an attempt after a newer one had raised the fence",
                        "select r.effect || ' token ' || r.token || ' at ' || r.published_at || ', fence ' || f.token || ' at '"
                        " || f.raised_at from millrace.receipt r join millrace.fence f using (effect)"
                        " where r.token < f.token and r.published_at > f.raised_at"));
    MILLRACE_TRY(NoRows(
        true, "receipt", "rows and receipt name different attempts",
        "select distinct a._millrace_effect from wh.appended a"
        " left join millrace.receipt r on r.effect = a._millrace_effect where r.token is distinct from a._millrace_token"));
    MILLRACE_TRY(NoRows(true, "stale_accepted", "staging is left",
                        "select s.name from millrace.staging s join millrace.receipt r using (effect)"
                        " where s.created_at < now() - interval '10 minutes'"));
    for (const Freeze& freeze : rounds_.freezes()) {
      if (!freeze.newer_began) continue;
      MILLRACE_TRY_ASSIGN(
          const std::int64_t written,
          Count(true, fmt::format("select count(*) from wh.appended where _millrace_token = {} and"
                                  " left(encode(sha256(convert_to(_millrace_effect, 'UTF8')), 'hex'), 16) = '{}'",
                                  freeze.token, freeze.effect_hash)));
      if (written == 0)
        ++out_.stale_refused;
      else
        Add("stale_accepted", "the frozen attempt (token {}) wrote {} rows after a newer one had begun", freeze.token, written);
    }
    return {};
  }

  // S1 for what the submitting client was told, and the witness that Millrace knows nothing of.
  Result<void> SingleJobs() {
    std::map<JobId, std::vector<std::int64_t>> witness;
    std::ifstream file(cluster_.witness());
    for (std::string line; std::getline(file, line);) {
      std::istringstream in(line);
      std::string id;
      std::int64_t token = 0;
      const bool read = static_cast<bool>(in >> id >> token);
      const auto job = JobId::Parse(id);
      if (!read || !job)
        Add("harness", "the witness has a line '{}'", line);
      else
        witness[*job].push_back(token);
    }
    out_.jobs_accepted = static_cast<std::int64_t>(accepted_.size());
    for (const auto& [job, told] : accepted_) {
      const auto outcome = outcomes_.find(job);
      if (outcome == outcomes_.end()) {
        Add("lost", "job {} was accepted at {} and has no outcome", job.ToString(), ToRfc3339(told.accepted_at));
        continue;
      }
      ++out_.jobs_done;
      if (outcome->second.state != JobState::kSucceeded)
        Add("run_failed", "job {} is {}", job.ToString(), Name(outcome->second.state));
      const auto& lines = witness[job];
      if (std::ranges::count(lines, outcome->second.token) == 0)
        Add("lost", "job {}: its outcome names token {}, which wrote nothing", job.ToString(), outcome->second.token);
    }
    for (const auto& [job, tokens] : witness) {
      if (std::set<std::int64_t>(tokens.begin(), tokens.end()).size() != tokens.size()) {
        ++out_.doubled;
        Add("doubled", "job {}: one attempt wrote twice: tokens {}", job.ToString(), fmt::join(tokens, ", "));
      }
      const auto outcome = outcomes_.find(job);
      if (outcome != outcomes_.end() && !tokens.empty() && std::ranges::max(tokens) > outcome->second.token)
        Add("token_order", "job {}: token {} ran although token {} had ended it", job.ToString(), std::ranges::max(tokens),
            outcome->second.token);
    }
    if (accepted_.size() < 20) Add("harness", "only {} jobs were accepted", accepted_.size());
    return {};
  }

  // S3 and S4 in the ledger: one outcome per job is its primary key; no attempt has a token that is not below the outcome's.
  Result<void> Tokens() {
    MILLRACE_TRY(
        NoRows(false, "token_order", "an attempt's token is not below its outcome's",
               "select a.job || ' ' || a.token || ' >= ' || o.token from millrace.attempt a join millrace.outcome o using (job)"
               " where o.token <> 0 and a.token >= o.token"));
    return NoRows(
        false, "token_order", "a job has outcomes without having been accepted",
        "select o.job::text from millrace.outcome o where not exists (select 1 from millrace.job j where j.job = o.job)");
  }

  Result<void> Audit() {
    MILLRACE_TRY_ASSIGN(const int code,
                        cluster_.Run({"audit", "verify", "--checkpoints", cluster_.checkpoints()}, kVerifyTimeout));
    if (code != 0) Add("audit", "millrace audit verify: exit code {}, see {}/logs/cli.log", code, cluster_.dir());
    return {};
  }

  // When things went on after each kill; and whether the kill really came before the outcome of the load it was to hit.
  Result<void> Times() {
    std::map<std::string, WallTime> load_ended;
    MILLRACE_TRY_ASSIGN(const PgResult loads,
                        observer_.Ledger("select left(encode(sha256(convert_to(j.effect, 'UTF8')), 'hex'), 16), o.recorded_at"
                                         " from millrace.job j join millrace.outcome o using (job) where j.stage = 'target'"));
    for (int i = 0; i < loads.rows(); ++i) load_ended[loads.Text(i, 0)] = loads.Time(i, 1);
    for (const Kill& kill : rounds_.kills()) {
      const std::string victim(Name(kill.victim));
      const auto ended = load_ended.find(kill.effect_hash);
      const bool before_outcome = ended == load_ended.end() || ended->second > kill.at;
      const Phase phase = before_outcome ? kill.phase : Phase::kNone;
      ++out_.kills[victim][std::string(Name(phase))];
      if (InWindow(phase)) {
        ++out_.in_window;
        if (ended != load_ended.end()) out_.work[victim].push_back(std::chrono::duration_cast<Millis>(ended->second - kill.at));
      }
      Served(victim, kill.at);
    }
    for (const Freeze& freeze : rounds_.freezes()) {
      const auto ended = load_ended.find(freeze.effect_hash);
      if (freeze.newer_began && ended != load_ended.end())
        out_.work[std::string(Name(Fault::kFreeze))].push_back(std::chrono::duration_cast<Millis>(ended->second - freeze.at));
    }
    for (const Disturbance& other : rounds_.others()) Served(std::string(Name(other.fault)), other.at);
    return {};
  }

  // How long after `at` the first job that was submitted after it had ended.
  void Served(const std::string& fault, WallTime at) {
    std::optional<WallTime> first;
    for (const auto& [job, told] : accepted_) {
      const auto outcome = outcomes_.find(job);
      if (told.submitted_at > at && outcome != outcomes_.end() && (!first || outcome->second.recorded_at < *first))
        first = outcome->second.recorded_at;
    }
    if (first) out_.service[fault].push_back(std::chrono::duration_cast<Millis>(*first - at));
  }

  Cluster& cluster_;
  Observer& observer_;
  const Rounds& rounds_;
  const std::map<JobId, Accepted>& accepted_;
  std::map<JobId, Outcome> outcomes_;
  Findings out_;
};

std::string Quantiles(std::vector<Millis> times) {
  if (times.empty()) return "-";
  std::ranges::sort(times);
  const auto at = [&](std::size_t percent) { return times[std::min(times.size() - 1, times.size() * percent / 100)].count(); };
  return fmt::format("p50 {} ms, p99 {} ms (n = {})", at(50), at(99), times.size());
}

}  // namespace

bool Findings::Has(std::string_view code) const {
  return std::ranges::any_of(violations, [&](const Violation& v) { return v.code == code; });
}

Result<Findings> Check(Cluster& cluster, Observer& observer, const Rounds& rounds, const std::map<JobId, Accepted>& accepted) {
  return Checker(cluster, observer, rounds, accepted).Run();
}

std::string Report(const Findings& f, const Rounds& rounds) {
  std::string out = fmt::format(
      "slots {}, runs {} ({} succeeded), effects {} with {} rows; single jobs accepted {}, done {}\n"
      "lost {}, doubled {}, stale writes refused {}, attempts lost with their worker {}\n",
      f.slots, f.runs, f.runs_succeeded, f.effects, f.effect_rows, f.jobs_accepted, f.jobs_done, f.lost, f.doubled,
      f.stale_refused, f.attempts_lost);
  out += fmt::format("{} kills, {} of them between a load's first row and its recorded outcome; {} freezes, {} other faults\n",
                     rounds.kills().size(), f.in_window, rounds.freezes().size(), rounds.others().size());
  out += fmt::format("{:<10} {:>8} {:>8} {:>10} {:>16} {:>10} {:>10}\n", "victim", "no load", "fenced", "rows sent",
                     "receipt written", "in COMMIT", "committed");
  for (const auto& [victim, phases] : f.kills) {
    const auto n = [&](Phase phase) {
      const auto it = phases.find(std::string(Name(phase)));
      return it == phases.end() ? 0 : it->second;
    };
    out += fmt::format("{:<10} {:>8} {:>8} {:>10} {:>16} {:>10} {:>10}\n", victim, n(Phase::kNone), n(Phase::kFenced),
                       n(Phase::kRowsSent), n(Phase::kReceipt), n(Phase::kCommitting), n(Phase::kCommitted));
  }
  for (const auto& [victim, times] : f.service)
    out += fmt::format("{:<16} a job submitted after it ended in {}\n", victim, Quantiles(times));
  for (const auto& [victim, times] : f.work)
    out += fmt::format("{:<16} the load under way at the kill ended in {}\n", victim, Quantiles(times));
  std::map<std::string, int> shown;
  for (const Violation& v : f.violations)
    if (++shown[v.code] <= kTextsPerCode) out += fmt::format("VIOLATION {}: {}\n", v.code, v.text);
  return out;
}

}  // namespace millrace::chaos
