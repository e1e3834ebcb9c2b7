#include "tests/chaos/checker.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>

#include "tests/checker/operations.h"

namespace millrace::chaos {
namespace {

// What ops/docs/durability.md says that class redis may lose, by when a job was accepted.
constexpr Millis kOnItsWay{1000};  // an answer that was given before a fault may take so long
constexpr Millis kQueueWait{
    60'000};  // a job that was accepted so long before the queue was emptied had left it, or should have
constexpr Millis kGrantedElsewhereWithin{5'000};  // the design's promise; what took longer is named
constexpr Millis kNotWritten{3'000};  // appendfsync everysec: what Redis had answered and not written when it was killed

class Checker {
 public:
  Checker(Cluster& cluster, Observer& observer, const Rounds& rounds, const std::map<JobId, Accepted>& accepted,
          const std::set<Uuid>& cancelled)
      : cluster_(cluster), observer_(observer), rounds_(rounds), accepted_(accepted) {
    for (const Uuid& id : cancelled) cancelled_ += fmt::format("{}'{}'", cancelled_.empty() ? "" : ", ", id.ToString());
  }

  Result<Findings> Run() {
    for (const std::string& dead : cluster_.Dead()) Add("died", "{}", dead);
    MILLRACE_TRY(ReadOutcomes());
    MILLRACE_TRY(History());
    MILLRACE_TRY(AllSucceeded());
    MILLRACE_TRY(MergedRows());
    MILLRACE_TRY(Frozen());
    MILLRACE_TRY(Times());
    out_.lost = std::ranges::count(out_.violations, "lost", &Violation::code);
    out_.doubled = std::ranges::count(out_.violations, "doubled", &Violation::code);
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
    MILLRACE_TRY_ASSIGN(const PgResult found, observer_.Ledger("select job, recorded_at from millrace.outcome"));
    for (int i = 0; i < found.rows(); ++i) outcomes_[JobId{found.Id(i, 0)}] = found.Time(i, 1);
    MILLRACE_TRY_ASSIGN(out_.attempts_lost, Count(false, "select count(*) from millrace.attempt where ended = 6"));
    return {};
  }

  // S1 to S10: the client's list, the witness, the append-only target and the processes' histories against the ledger.
  Result<void> History() {
    const std::string accepted = cluster_.dir() + "/accepted.jsonl";
    {
      std::ofstream list(accepted);
      for (const auto& [job, told] : accepted_)
        list << fmt::format(R"({{"job": "{}", "class": "{}", "at": {}}})", job.ToString(), told.redis ? "redis" : "ledger",
                            ToUnixMicros(told.accepted_at))
             << '\n';
    }
    const ClockSteps& steps = cluster_.clock_steps();
    const checker::Inputs inputs{.ledger = cluster_.ledger_dsn(),
                                 .history = cluster_.history(),
                                 .accepted = accepted,
                                 .witness = cluster_.witness(),
                                 .destination = cluster_.warehouse_dsn(),
                                 .targets = {{"wh.appended", kRowsPerEffect}},
                                 .checkpoints = cluster_.checkpoints(),
                                 .public_key = cluster_.public_key(),
                                 .ended = true,
                                 .contiguous_slots = true,
                                 .slots = {ToUnixMicros(cluster_.slots().from), ToUnixMicros(cluster_.slots().to)},
                                 .destination_steps_back = Micros{steps.back}.count(),
                                 .destination_stepped = {ToUnixMicros(steps.from), ToUnixMicros(steps.to)},
                                 .redis_may_lose = RedisWindows()};
    MILLRACE_TRY_ASSIGN(out_.report, checker::Check(inputs));
    for (const checker::Violation& v : out_.report.violations) out_.violations.push_back({v.code, v.text});
    for (const std::string& line : out_.report.unreadable) Add("harness", "a line of a history is no operation: {}", line);
    if (out_.report.checkpoints.value_or(0) == 0) Add("harness", "no checkpoint was there to verify the audit trail against");
    for (std::size_t i = 0; i < checker::kInvariants; ++i)
      if (out_.report.looked_at[i] == 0) Add("harness", "nothing was there to verify S{} on", i + 1);
    if (accepted_.size() < 20) Add("harness", "only {} jobs were accepted", accepted_.size());
    return {};
  }

  std::vector<checker::Window> RedisWindows() const {
    std::vector<checker::Window> windows;
    const auto add = [&](WallTime from, WallTime to) { windows.push_back({ToUnixMicros(from), ToUnixMicros(to + kOnItsWay)}); };
    for (const Disturbance& other : rounds_.others()) {
      if (other.fault == Fault::kFlush) add(other.at - kQueueWait, other.at);
      if (other.fault == Fault::kOlderRedis) add(other.since, other.at);
      if (other.fault == Fault::kEverything) add(other.at - kNotWritten, other.at);
    }
    for (const Kill& kill : rounds_.kills())
      if (kill.victim == Victim::kRedis) add(kill.at - kNotWritten, kill.at);
    return windows;
  }

  // Every fault here is one that work survives.
  Result<void> AllSucceeded() {
    const auto asked = [&](std::string_view id) {
      return cancelled_.empty() ? std::string() : fmt::format(" and not (o.state = 12 and {} in ({}))", id, cancelled_);
    };
    MILLRACE_TRY(NoRows(false, "run_failed", "a run did not succeed",
                        "select r.pipeline || ' ' || r.run || ': ' || o.reason"
                        " from millrace.run r join millrace.run_outcome o using (run) where o.state <> 10" +
                            asked("r.run")));
    MILLRACE_TRY(NoRows(
        false, "run_failed", "a single job did not succeed",
        "select o.job || ' is ' || o.state from millrace.outcome o where o.run is null and o.state <> 10" + asked("o.job")));
    MILLRACE_TRY_ASSIGN(out_.runs_succeeded, Count(false, "select count(*) from millrace.run_outcome where state = 10"));
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

  // A frozen attempt that came back was refused: nothing of it is in the target.
  Result<void> Frozen() {
    for (const Freeze& freeze : rounds_.freezes()) {
      if (!freeze.newer_began) continue;
      if (freeze.lasted >= kLongFreeze) ++out_.long_freezes;
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

  // When things went on after each kill; and whether the kill really came before the outcome of the load it was to hit.
  Result<void> Times() {
    std::map<std::string, WallTime> load_ended;
    std::map<std::string, Uuid> load_job;
    MILLRACE_TRY_ASSIGN(
        const PgResult loads,
        observer_.Ledger("select left(encode(sha256(convert_to(j.effect, 'UTF8')), 'hex'), 16), o.recorded_at, j.job"
                         " from millrace.job j join millrace.outcome o using (job) where j.stage = 'target'"));
    for (int i = 0; i < loads.rows(); ++i) {
      load_ended[loads.Text(i, 0)] = loads.Time(i, 1);
      load_job[loads.Text(i, 0)] = loads.Id(i, 2);
    }
    MILLRACE_TRY_ASSIGN(const checker::History history, checker::ReadHistory(cluster_.history()));
    for (const Kill& kill : rounds_.kills()) {
      const std::string victim(Name(kill.victim));
      const auto ended = load_ended.find(kill.effect_hash);
      const bool before_outcome = ended == load_ended.end() || ended->second > kill.at;
      const Phase phase = before_outcome ? kill.phase : Phase::kNone;
      ++out_.kills[victim][std::string(Name(phase))];
      if (InWindow(phase)) {
        ++out_.in_window;
        if (ended != load_ended.end()) out_.work[victim].push_back(std::chrono::duration_cast<Millis>(ended->second - kill.at));
        if (kill.victim == Victim::kWorker) GrantedAgain(history, victim, load_job[kill.effect_hash], kill.mono);
      }
      if (kill.victim == Victim::kBroker) Taken(history, kill.mono);
      Served(victim, kill.at);
    }
    for (const Freeze& freeze : rounds_.freezes()) {
      const auto ended = load_ended.find(freeze.effect_hash);
      if (freeze.newer_began && ended != load_ended.end())
        out_.work[std::string(Name(Fault::kFreeze))].push_back(std::chrono::duration_cast<Millis>(ended->second - freeze.at));
      if (freeze.newer_began)
        GrantedAgain(history, std::string(Name(Fault::kFreeze)), load_job[freeze.effect_hash], freeze.mono);
    }
    for (const Disturbance& other : rounds_.others()) {
      Served(std::string(Name(other.fault)), other.at);
      if (other.fault == Fault::kFreezeBroker && other.lasted >= kLongFreezeOfBroker) ++out_.long_freezes_of_brokers;
    }
    return {};
  }

  // How long after `at` a broker gave `job` to a worker again.
  void GrantedAgain(const checker::History& history, const std::string& fault, Uuid job, MonoTime at) {
    for (const checker::Operation& o : history.operations) {
      if (o.op != "grant" || !o.By("broker:") || o.at <= at.time_since_epoch().count()) continue;
      if (std::ranges::none_of(o.items, [&](const checker::Item& item) { return item.id == job; })) continue;
      const Micros took = Micros{o.at} - at.time_since_epoch();
      out_.granted[fault].push_back(std::chrono::duration_cast<Millis>(took));
      if (fault == Name(Victim::kWorker)) out_.granted_after[at] = std::chrono::duration_cast<Millis>(took);
      if (took > kGrantedElsewhereWithin)
        std::printf("slow: %s, job %s, fault at %lld us, granted by %s at %lld us\n", fault.c_str(), job.ToString().c_str(),
                    static_cast<long long>(at.time_since_epoch().count()), o.who.c_str(), static_cast<long long>(o.at));
      return;
    }
  }

  void Taken(const checker::History& history, MonoTime at) {
    const auto own = std::ranges::find_if(history.operations, [&](const checker::Operation& o) {
      return o.op == "own" && o.at > at.time_since_epoch().count() && !o.holds.empty();
    });
    if (own != history.operations.end())
      out_.taken.push_back(std::chrono::duration_cast<Millis>(Micros{own->at} - at.time_since_epoch()));
  }

  // How long after `at` the first job that was submitted after it had ended.
  void Served(const std::string& fault, WallTime at) {
    std::optional<WallTime> first;
    for (const auto& [job, told] : accepted_) {
      const auto outcome = outcomes_.find(job);
      if (told.submitted_at > at && outcome != outcomes_.end() && (!first || outcome->second < *first)) first = outcome->second;
    }
    if (first) out_.service[fault].push_back(std::chrono::duration_cast<Millis>(*first - at));
  }

  Cluster& cluster_;
  Observer& observer_;
  const Rounds& rounds_;
  const std::map<JobId, Accepted>& accepted_;
  std::string cancelled_;               // a list in SQL
  std::map<JobId, WallTime> outcomes_;  // when they were recorded
  Findings out_;
};

std::string Quantiles(std::vector<Millis> times) {
  if (times.empty()) return "-";
  std::ranges::sort(times);
  const auto at = [&](std::size_t percent) { return times[std::min(times.size() - 1, times.size() * percent / 100)].count(); };
  return fmt::format("p50 {} ms, p90 {} ms, p99 {} ms (n = {})", at(50), at(90), at(99), times.size());
}

}  // namespace

bool Findings::Has(std::string_view code) const {
  return std::ranges::any_of(violations, [&](const Violation& v) { return v.code == code; });
}

Result<Findings> Check(Cluster& cluster, Observer& observer, const Rounds& rounds, const std::map<JobId, Accepted>& accepted,
                       const std::set<Uuid>& cancelled) {
  return Checker(cluster, observer, rounds, accepted, cancelled).Run();
}

std::string Report(const Findings& f, const Rounds& rounds) {
  std::string out =
      checker::Text(f.report) + fmt::format("{} runs succeeded; stale writes refused {}, attempts lost with their worker {}\n",
                                            f.runs_succeeded, f.stale_refused, f.attempts_lost);
  out += fmt::format("{} kills, {} of them between a load's first row and its recorded outcome; {} freezes, {} other faults\n",
                     rounds.kills().size(), f.in_window, rounds.freezes().size(), rounds.others().size());
  if (f.long_freezes + f.long_freezes_of_brokers > 0)
    out += fmt::format("frozen for three leases or more: {} workers; for a minute or more: {} brokers\n", f.long_freezes,
                       f.long_freezes_of_brokers);
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
  for (const auto& [victim, times] : f.granted)
    out += fmt::format("{:<16} that load was granted elsewhere in {}\n", victim, Quantiles(times));
  if (!f.taken.empty()) out += fmt::format("{:<16} a shard of it was taken in {}\n", "broker", Quantiles(f.taken));
  for (const Violation& v : f.violations)
    if (v.code == "run_failed" || v.code == "died" || v.code == "harness")
      out += fmt::format("VIOLATION {}: {}\n", v.code, v.text);
  return out;
}

}  // namespace millrace::chaos
