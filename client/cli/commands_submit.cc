// job submit: single jobs, or a batch with a callback.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "client/cli/broker_look.h"
#include "client/cli/commands.h"
#include "client/cli/context.h"
#include "client/cli/engine.h"
#include "client/cli/submit_plan.h"
#include "common/base/limits.h"
#include "common/base/tell.h"
#include "common/model/job_options.h"
#include "common/model/stage_task.h"
#include "common/wire/check_job.h"

namespace millrace::cli {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kLineBytesMax = 2 * kPayloadBytesMax;
constexpr std::size_t kSinglesMax = 100'000;
constexpr Millis kSubmitTimeout{30'000};
constexpr int kDoorsMax = 3;  // brokers that are asked for one submit: its shard may move meanwhile
constexpr Millis kEndsPoll{100};
constexpr auto kWaitMax = std::chrono::hours{24};
constexpr Millis kFromNowMax = std::chrono::hours{24 * 3650};  // a deadline or expiry, as ParseDuration's

// A text is the payload; anything else is the payload as JSON.
std::string PayloadOf(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

Result<std::int64_t> IntegerOf(const Json& value, std::string_view key) {
  if (!value.is_number_integer()) return Fail(ErrorCode::kInvalidArgument, "{}: {} is no integer", key, value.dump());
  if (value.is_number_unsigned() && !std::in_range<std::int64_t>(value.get<std::uint64_t>()))
    return Fail(ErrorCode::kInvalidArgument, "{}: {} is too large", key, value.dump());
  return value.get<std::int64_t>();
}

Result<int> IntegerIn(const Json& value, std::string_view key, int least, int most) {
  MILLRACE_TRY_ASSIGN(const std::int64_t n, IntegerOf(value, key));
  if (n < least || n > most) return Fail(ErrorCode::kInvalidArgument, "{}: {} is not in [{}, {}]", key, n, least, most);
  return static_cast<int>(n);
}

// A job as its line has it. What counts from the submit on has no instant before it is stamped.
struct Draft {
  JobSpec job;
  std::optional<Millis> deadline_in, expires_in;
};

// `now` is of the ledger's clock: the client's own may be wrong, and others judge by it.
JobSpec Stamped(Draft draft, WallTime now) {
  JobSpec job = std::move(draft.job);
  job.submitted_at = now;
  if (draft.deadline_in) job.options.deadline = now + *draft.deadline_in;
  if (draft.expires_in) job.options.expires_at = now + *draft.expires_in;
  return job;
}

std::vector<JobSpec> Stamped(std::vector<Draft> drafts, WallTime now) {
  std::vector<JobSpec> jobs;
  jobs.reserve(drafts.size());
  for (Draft& draft : drafts) jobs.push_back(Stamped(std::move(draft), now));
  return jobs;
}

Result<void> DurabilityField(JobOptions& options, const Json& value) {
  if (options.durability != Durability::kUnsaid)
    return Fail(ErrorCode::kInvalidArgument, "durability: options says it too; give one of them");
  const auto durability = value.is_string() ? ParseDurability(value.get<std::string>()) : std::nullopt;
  if (!durability)
    return Fail(ErrorCode::kInvalidArgument, "durability: {} is neither ledger nor redis; without it a job is of its queue's",
                value.dump());
  options.durability = *durability;
  return {};
}

// Keys that say what `options` can say too: in words, or from the submit on.
Result<void> OptionField(Draft& draft, const std::string& key, const Json& value) {
  JobOptions& options = draft.job.options;
  const bool backoff = key == "backoff", deadline = key == "deadline_in_ms";
  const bool twice =
      backoff ? options.backoff != JobOptions{}.backoff : (deadline ? options.deadline : options.expires_at).has_value();
  if (twice)
    return Fail(ErrorCode::kInvalidArgument, "{}: options says it too ({}); give one of them", key,
                backoff    ? "backoff"
                : deadline ? "deadline_us"
                           : "expires_at_us");
  if (backoff) {
    if (value != "fixed" && value != "exponential")
      return Fail(ErrorCode::kInvalidArgument, "backoff: {} is neither fixed nor exponential", value.dump());
    options.backoff = value == "fixed" ? Backoff::kFixed : Backoff::kExponential;
    return {};
  }
  MILLRACE_TRY_ASSIGN(const std::int64_t n, IntegerOf(value, key));
  if (n < 1 || n > kFromNowMax.count())
    return Fail(ErrorCode::kInvalidArgument, "{}: {} is not in [1, {}]", key, n, kFromNowMax.count());
  (deadline ? draft.deadline_in : draft.expires_in) = Millis{n};
  return {};
}

Result<void> Field(Draft& draft, const std::string& key, const Json& value) {
  JobSpec& job = draft.job;
  if (key == "payload") {
    job.payload = PayloadOf(value);
  } else if (key == "options") {  // read before all others
  } else if (key == "backoff" || key == "deadline_in_ms" || key == "expires_in_ms") {
    return OptionField(draft, key, value);
  } else if (key == "durability") {
    return DurabilityField(job.options, value);
  } else if (key == "kind" || key == "queue" || key == "run_at") {
    if (!value.is_string()) return Fail(ErrorCode::kInvalidArgument, "{}: {} is no text", key, value.dump());
    const auto text = value.get<std::string>();
    if (key == "run_at") {
      MILLRACE_TRY_ASSIGN(job.run_at, ParseRfc3339(text));
    } else {
      (key == "kind" ? job.kind : job.queue) = text;
    }
  } else if (key == "priority") {
    MILLRACE_TRY_ASSIGN(job.priority, IntegerIn(value, key, 0, kPriorityLevels - 1));
  } else if (key == "max_attempts") {
    MILLRACE_TRY_ASSIGN(job.retry.max_attempts, IntegerIn(value, key, 1, kMaxAttemptsMax));
  } else if (key == "timeout_ms" || key == "backoff_base_ms" || key == "backoff_cap_ms") {
    MILLRACE_TRY_ASSIGN(const std::int64_t n, IntegerOf(value, key));
    (key == "timeout_ms" ? job.timeout : key == "backoff_base_ms" ? job.retry.backoff_base : job.retry.backoff_cap) = Millis{n};
  } else {
    return Fail(ErrorCode::kInvalidArgument,
                "unknown key '{}'; a job has kind, queue, payload, priority, max_attempts, backoff, backoff_base_ms, "
                "backoff_cap_ms, timeout_ms, run_at, deadline_in_ms, expires_in_ms, durability and options",
                key);
  }
  return {};
}

// A job from its line. One of a batch belongs to `run`, and its command is told so.
Result<Draft> JobOf(const std::string& text, Context& context, std::optional<RunId> run) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return Fail(ErrorCode::kInvalidArgument, "is no JSON object");
  Draft draft;
  JobSpec& job = draft.job;
  job.id = context.ids().Next<JobId>();
  job.org = context.org();
  job.run = run;
  if (const auto options = json.find("options"); options != json.end()) {
    MILLRACE_TRY_ASSIGN(job.options, JobOptionsFromJson(options->dump()));
  }
  for (const auto& [key, value] : json.items()) MILLRACE_TRY(Field(draft, key, value));
  if (job.kind == kJobKindStage)
    return Fail(ErrorCode::kInvalidArgument, "kind: stages come from pipelines: start one with millrace run start");
  if (job.kind == kJobKindCommand) {
    MILLRACE_TRY_ASSIGN(job.payload, CommandPayload(job.payload, job.id, job.org));
    if (run) {
      MILLRACE_TRY_ASSIGN(CommandTask task, CommandTaskFromJson(job.payload));
      task.run = *run;
      job.payload = ToJson(task);
    }
  }
  if (run && job.options.durability == Durability::kRedis)
    return Fail(ErrorCode::kInvalidArgument, "durability: redis: jobs of a batch with --then are of the ledger's class");
  if (job.retry.backoff_base > job.retry.backoff_cap)
    return Fail(ErrorCode::kInvalidArgument,
                "backoff_base_ms: {} is over backoff_cap_ms ({}), which no wait exceeds; raise the cap or lower the base",
                job.retry.backoff_base.count(), job.retry.backoff_cap.count());
  MILLRACE_TRY(wire::CheckClientsOptions(job.options));
  MILLRACE_TRY(wire::CheckJob(job));
  return draft;
}

Result<std::vector<Draft>> ReadBatch(const std::string& name, Context& context, std::optional<RunId> run) {
  std::ifstream file;
  if (name != "-") {
    file.open(name, std::ios::binary);
    if (!file) return Fail(ErrorCode::kNotFound, "--batch: cannot read '{}'", name);
  }
  std::istream& in = name == "-" ? std::cin : file;
  const std::size_t max = run ? kStagesPerPipelineMax - 1 : kSinglesMax;
  std::vector<Draft> jobs;
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line.size() > kLineBytesMax)
      return Fail(ErrorCode::kInvalidArgument, "{}:{}: {} bytes, limit {}", name, number, line.size(), kLineBytesMax);
    if (jobs.size() == max)
      return Fail(ErrorCode::kInvalidArgument, "{}:{}: more than {} jobs; make several batches of them", name, number, max);
    auto job = JobOf(line, context, run);
    if (!job) return Prefixed(std::move(job.error()), "{}:{}", name, number);
    if (run) job->job.stage = std::to_string(jobs.size() + 1);
    jobs.push_back(std::move(*job));
  }
  if (in.bad()) return Fail(ErrorCode::kNotFound, "--batch: cannot read '{}'", name);
  if (jobs.empty()) return Fail(ErrorCode::kInvalidArgument, "{}: has no job", name);
  return jobs;
}

// Once for each kind that needs a worker of somebody else's.
void SayForeignKinds(std::span<const JobSpec> jobs) {
  std::set<std::string> kinds;
  for (const JobSpec& job : jobs)
    if (kinds.insert(job.kind).second)
      if (const std::string text = ForeignKind(job.kind); !text.empty()) Tell("{}\n", text);
}

// Waits until all of them have ended, and returns how.
Result<std::vector<std::string>> AwaitEnds(Context& context, Ledger& ledger, Door& door, const std::vector<Uuid>& ids) {
  if (door.client() == nullptr) SayIfNobodyRuns(context, ledger, "what was submitted");
  std::fflush(stdout);  // the ids, before the wait
  BlockStopSignals();
  std::vector<std::string> ends(ids.size());
  std::vector<std::size_t> open(ids.size());
  std::ranges::generate(open, [i = std::size_t{0}]() mutable { return i++; });
  const MonoTime deadline = context.clock().Now() + kWaitMax;
  while (true) {
    std::vector<Uuid> asked;  // the oldest; the others have their turn when these have ended
    for (std::size_t k = 0; k < std::min(open.size(), kBatchJobsMax); ++k) asked.push_back(ids[open[k]]);
    MILLRACE_TRY_ASSIGN(const auto states, ledger.States(context.org(), asked, context.Deadline()));
    std::vector<std::size_t> still(open.begin() + static_cast<std::ptrdiff_t>(asked.size()), open.end());
    for (std::size_t k = 0; k < asked.size(); ++k) {
      if (states[k].job_ended) ends[open[k]] = Name(*states[k].job_ended);
      if (states[k].run_ended) ends[open[k]] = Name(*states[k].run_ended);
      if (ends[open[k]].empty()) still.push_back(open[k]);
    }
    std::ranges::sort(still);
    open = std::move(still);
    if (open.empty()) return ends;
    if (StopSignalPending()) return Fail(ErrorCode::kCancelled, "interrupted; what was submitted goes on");
    if (context.clock().Now() >= deadline) return Fail(ErrorCode::kTimedOut, "{} of them have not ended", open.size());
    door.transport().Wait(kEndsPoll);
  }
}

ExitCode CodeOf(const std::vector<std::string>& ends) {
  return std::ranges::all_of(ends, [](const std::string& end) { return end == Name(JobState::kSucceeded); })
             ? ExitCode::kOk
             : ExitCode::kWorkFailed;
}

Result<ExitCode> SubmitBatch(const Options& options, Context& context) {
  RunPlan plan;
  plan.run.id = context.ids().Next<RunId>();
  plan.run.org = context.org();
  plan.run.overlap = "allow";
  MILLRACE_TRY_ASSIGN(auto drafts, ReadBatch(options.batch, context, plan.run.id));
  auto then = JobOf(options.then, context, plan.run.id);
  if (!then) return Prefixed(std::move(then.error()), "--then");
  then->job.stage = "then";
  then->job.options.run_when = RunWhen::kAllEnded;
  for (const Draft& draft : drafts) then->job.depends_on.push_back(draft.job.id);
  drafts.push_back(std::move(*then));
  MILLRACE_TRY_ASSIGN(const auto ledger, context.OpenLedger(Context::Create::kYes, Actor()));
  MILLRACE_TRY_ASSIGN(plan.run.created_at, ledger->Now(context.Deadline()));
  plan.jobs = Stamped(std::move(drafts), plan.run.created_at);
  MILLRACE_TRY_ASSIGN(Door door, Door::OpenOwners(context, *ledger));
  if (door.client() != nullptr) {
    MILLRACE_TRY(SubmitPlan(*door.client(), *ledger, plan, false, context.clock().Now() + kSubmitTimeout));
  } else {
    MILLRACE_TRY(ledger->SubmitRun(plan.run, plan.jobs, context.Deadline()));
  }
  SayForeignKinds(plan.jobs);
  std::vector<std::string> ends;
  if (options.wait) {
    MILLRACE_TRY_ASSIGN(ends, AwaitEnds(context, *ledger, door, {plan.run.id.uuid}));
  }
  if (options.quiet) {
    fmt::print("{}\n", plan.run.id.ToString());
    return CodeOf(ends);
  }
  Table table{.columns = {"run", "jobs", "then", "state"}, .rows = {}};
  table.rows.push_back({plan.run.id.ToString(), static_cast<std::int64_t>(plan.jobs.size() - 1), plan.jobs.back().id.ToString(),
                        ends.empty() ? Cell{} : Cell{ends.front()}});
  Print(table, context.format());
  return CodeOf(ends);
}

// "--deadline 10m" as the key of a line, in milliseconds.
Result<void> DurationKey(Json& json, std::string_view option, const std::string& text, Millis least, const char* key) {
  if (text.empty()) return {};
  auto duration = ParseDuration(text);
  if (!duration) return Prefixed(std::move(duration.error()), "{}", option);
  if (*duration < least) return Fail(ErrorCode::kInvalidArgument, "{}: '{}' is too short; give 1ms or more", option, text);
  json[key] = duration->count();
  return {};
}

// What the command line says of retries and times, as keys of a line.
Result<void> RetryKeys(const Options& options, Json& json) {
  MILLRACE_TRY(DurationKey(json, "--timeout", options.timeout, Millis{0}, "timeout_ms"));
  MILLRACE_TRY(DurationKey(json, "--backoff-base", options.backoff_base, Millis{0}, "backoff_base_ms"));
  MILLRACE_TRY(DurationKey(json, "--backoff-cap", options.backoff_cap, Millis{0}, "backoff_cap_ms"));
  MILLRACE_TRY(DurationKey(json, "--deadline", options.deadline, Millis{1}, "deadline_in_ms"));
  MILLRACE_TRY(DurationKey(json, "--expires-in", options.expires_in, Millis{1}, "expires_in_ms"));
  const Millis base{json.value("backoff_base_ms", RetryPolicy{}.backoff_base.count())};
  const Millis cap{json.value("backoff_cap_ms", RetryPolicy{}.backoff_cap.count())};
  if (base > cap && !options.backoff_base.empty())
    return Fail(ErrorCode::kInvalidArgument,
                "--backoff-base: {} is over --backoff-cap ({}), which no wait exceeds; raise the cap", options.backoff_base,
                HumanDuration(cap));
  if (base > cap)
    return Fail(ErrorCode::kInvalidArgument, "--backoff-cap: {} is under --backoff-base ({}); lower the base too",
                options.backoff_cap, HumanDuration(base));
  if (options.backoff.empty()) return {};
  if (options.backoff != "fixed" && options.backoff != "exponential")
    return Fail(ErrorCode::kInvalidArgument, "--backoff: '{}' is neither fixed nor exponential", options.backoff);
  json["backoff"] = options.backoff;
  return {};
}

// One job, from the options of the command line.
Result<Draft> SingleJob(const Options& options, Context& context) {
  Json json{{"kind", options.kind}, {"payload", options.payload}};
  if (!options.queue.empty()) json["queue"] = options.queue;
  if (!options.run_at.empty()) json["run_at"] = options.run_at;
  if (options.priority) json["priority"] = *options.priority;
  if (!options.durability.empty()) json["durability"] = options.durability;
  if (options.max_attempts) json["max_attempts"] = *options.max_attempts;
  MILLRACE_TRY(RetryKeys(options, json));
  if (!options.job_options.empty()) {
    json["options"] = Json::parse(options.job_options, nullptr, false);
    if (!json["options"].is_object())
      return Fail(ErrorCode::kInvalidArgument, "--options: '{}' is no JSON object", options.job_options);
  }
  return JobOf(json.dump(-1, ' ', false, Json::error_handler_t::replace), context, std::nullopt);
}

// What became of single jobs, in their order; after an error of the first ones.
struct Sent {
  std::size_t jobs = 0;
  std::size_t doubtful = 0;                  // of the next ones nobody knows whether they were taken
  std::map<JobId, std::string> conflicts;    // the holder of its unique key, for each that was not taken
  std::map<std::string, std::string> heard;  // who answered at each address that was asked; empty: nobody did
};

bool Unknown(const Error& error) { return error.code == ErrorCode::kMaybeApplied || error.code == ErrorCode::kTimedOut; }

// Why the broker that serves the org, which announces an address, has no job of `durability: redis`; and what to do.
Error OwnerHasNot(OrgId org, const BrokerAddress& owner, const Sent& sent) {
  const std::string reach = "give an address that reaches it from here as broker.listen_clients";
  std::string why, fix;
  if (const auto heard = sent.heard.find(owner.clients); heard == sent.heard.end()) {
    why = fmt::format("which was not asked at {}, the address that it announces", owner.clients);
    fix = "who serves the org changes; submit it again";
  } else if (heard->second.empty()) {
    why = fmt::format("which was not reached at {}, the address that it announces", owner.clients);
    fix = "see that it runs, or " + reach;
  } else if (heard->second == owner.name) {
    why =
        fmt::format("but '{}' at {}, the address that it announces, says that it does not serve it", owner.name, owner.clients);
    fix = "submit it again, and if that goes on, " + reach;
  } else {
    why = fmt::format("which says that it is reached at {}, where '{}' answers", owner.clients, heard->second);
    fix = reach;
  }
  return {ErrorCode::kUnavailable,
          fmt::format("durability: redis: org {} is served by broker '{}', {}, and the ledger does not take it: {}",
                      org.value(), owner.name, why, fix)};
}

// Whether the ledger can take them in the place of a broker. One that may have taken the doubtful ones may have put those
// that leave the class to their queue where the ledger does not see them: they would run twice.
Result<void> CheckLedgerTakes(Context& context, Ledger& ledger, const std::string& asked, std::span<const JobSpec> jobs,
                              const Sent& sent) {
  if (sent.doubtful > 0) {
    MILLRACE_TRY_ASSIGN(const auto queues, ledger.QueuesOf(context.org(), std::nullopt, context.Deadline()));
    for (const JobSpec& job : jobs.first(sent.doubtful)) {
      const auto queue = std::ranges::find(queues, job.queue, &QueueSettings::queue);
      if (job.options.durability == Durability::kUnsaid && queue != queues.end() &&
          (queue->durability == Durability::kRedis || queue->redis_until))
        return Fail(
            ErrorCode::kMaybeApplied,
            "queue '{}' is or was of durability: redis, and the broker that was asked at {} does not serve it any more: "
            "whether it took the jobs is not known, and the ledger does not take them; see millrace job show",
            job.queue, asked);
    }
  }
  if (std::ranges::none_of(jobs, [](const JobSpec& job) { return job.options.durability == Durability::kRedis; })) return {};
  const BrokerAddress owner = OwnerOf(context, ledger);
  if (!owner.clients.empty()) return std::unexpected(OwnerHasNot(context.org(), owner, sent));
  if (!owner.name.empty())
    return Fail(ErrorCode::kUnavailable,
                "durability: redis: org {} is served by broker '{}', which is not at {}, and the ledger does not take it: give "
                "that broker's address as broker.listen_clients",
                context.org().value(), owner.name, asked);
  return Fail(ErrorCode::kUnavailable,
              "durability: redis: no broker that serves org {} answers at {}, and the ledger does not take it: start '{}'",
              context.org().value(), asked,
              context.embedded() ? "millrace up --home " + context.config().home : "millrace broker");
}

Result<void> SendTo(BrokerClient& client, std::span<const JobSpec> jobs, MonoTime deadline, Sent& sent) {
  std::vector<wire::SubmitReply::Item> answers;
  auto submitted = client.SubmitJobs(jobs.subspan(sent.jobs), deadline, answers);
  for (const auto& item : answers)
    if (!item.conflict_with.IsNil()) sent.conflicts.emplace(JobId{item.id}, item.conflict_with.ToString());
  sent.jobs += answers.size();
  if (!submitted && (Unknown(submitted.error()) || (BrokerClient::IsNotOwner(submitted.error()) && client.in_doubt())))
    sent.doubtful = BrokerClient::OneMessage(jobs.subspan(sent.jobs));
  return submitted;
}

// To the configured broker; when it does not serve the org, or none answers, to the one that the ledger names, at most
// kDoorsMax times. What a broker may have taken goes to no other one. False: the rest has no broker that is known and answers.
Result<bool> SendToBrokers(Context& context, Ledger& ledger, Door& door, std::span<const JobSpec> jobs, Sent& sent) {
  const MonoTime deadline = context.clock().Now() + kSubmitTimeout;
  for (int doors = 1;; ++doors) {
    sent.heard[door.endpoint()] = door.answered_by();
    if (door.client() != nullptr) {
      auto submitted = SendTo(*door.client(), jobs, deadline, sent);
      if (submitted) return true;
      if (!BrokerClient::IsNotOwner(submitted.error())) return std::unexpected(std::move(submitted.error()));
    }
    if (sent.doubtful > 0 || doors == kDoorsMax) return false;
    MILLRACE_TRY_ASSIGN(Door next, Door::OpenOwnersBeside(context, ledger, door.endpoint()));
    if (!next.endpoint().empty()) sent.heard[next.endpoint()] = next.answered_by();
    if (next.client() == nullptr) return false;
    door = std::move(next);
  }
}

// A broker that answers takes them at once; what none serves that is reached goes into the ledger, where its owner finds it
// within seconds.
Result<void> SendSingles(Context& context, Ledger& ledger, Door& door, std::span<const JobSpec> jobs, Sent& sent) {
  MILLRACE_TRY_ASSIGN(const bool all, SendToBrokers(context, ledger, door, jobs, sent));
  if (all) return {};
  MILLRACE_TRY(CheckLedgerTakes(context, ledger, door.endpoint(), jobs.subspan(sent.jobs), sent));
  sent.doubtful = 0;  // the ledger tells which of them it has
  while (sent.jobs < jobs.size()) {
    const auto page = jobs.subspan(sent.jobs, std::min(kBatchJobsMax, jobs.size() - sent.jobs));
    auto result = ledger.SubmitJobs(page, context.Deadline());
    if (!result && Unknown(result.error())) sent.doubtful = page.size();
    if (!result) return std::unexpected(std::move(result.error()));
    for (const UniqueConflict& conflict : result->conflicts) sent.conflicts.emplace(conflict.job, conflict.holder.ToString());
    sent.jobs += page.size();
  }
  return {};
}

Result<ExitCode> SubmitSingles(const Options& options, Context& context) {
  std::vector<Draft> drafts;
  if (!options.batch.empty()) {
    MILLRACE_TRY_ASSIGN(drafts, ReadBatch(options.batch, context, std::nullopt));
  } else {
    MILLRACE_TRY_ASSIGN(Draft draft, SingleJob(options, context));
    drafts.push_back(std::move(draft));
  }
  MILLRACE_TRY_ASSIGN(const auto ledger, context.OpenLedger(Context::Create::kYes, Actor()));
  MILLRACE_TRY_ASSIGN(const WallTime now, ledger->Now(context.Deadline()));
  std::vector<JobSpec> jobs = Stamped(std::move(drafts), now);
  MILLRACE_TRY_ASSIGN(Door door, Door::Open(context));
  Sent sent;
  auto all_sent = SendSingles(context, *ledger, door, jobs, sent);
  const auto& conflicts = sent.conflicts;
  const std::size_t asked = jobs.size();
  for (const JobSpec& job : std::span(jobs).subspan(sent.jobs, sent.doubtful))
    Tell("job {}: not known whether it was taken; look with job show before you submit it again\n", job.id.ToString());
  jobs.resize(sent.jobs);
  SayForeignKinds(jobs);
  std::vector<Uuid> taken;
  for (const JobSpec& job : jobs)
    if (!conflicts.contains(job.id)) taken.push_back(job.id.uuid);
  if (options.quiet)
    for (const Uuid& id : taken) fmt::print("{}\n", id.ToString());
  std::vector<std::string> ends;
  if (options.wait && all_sent && !taken.empty()) {
    MILLRACE_TRY_ASSIGN(ends, AwaitEnds(context, *ledger, door, taken));
  }
  const auto finish = [&]() -> Result<ExitCode> {
    if (all_sent) return CodeOf(ends);
    if (jobs.empty()) return std::unexpected(std::move(all_sent.error()));
    return Prefixed(std::move(all_sent.error()), "only the first {} of {} jobs were taken", jobs.size(), asked);
  };
  if (options.quiet) return finish();
  Table table{.columns = {"job", "queue", "kind", "state", "conflict_with"}, .rows = {}};
  std::size_t next_end = 0;
  for (const JobSpec& job : jobs) {
    const auto held = conflicts.find(job.id);
    const bool conflict = held != conflicts.end();
    table.rows.push_back({job.id.ToString(), job.queue, job.kind, conflict || ends.empty() ? Cell{} : Cell{ends[next_end++]},
                          conflict ? Cell{held->second} : Cell{}});
  }
  if (!jobs.empty()) Print(table, context.format());
  return finish();
}

// A batch says everything in its lines.
Result<void> CheckNoSingle(const Options& options) {
  for (const auto& [name, given, key] :
       {std::tuple{"--queue", !options.queue.empty(), "queue"}, std::tuple{"--payload", !options.payload.empty(), "payload"},
        std::tuple{"--priority", options.priority.has_value(), "priority"},
        std::tuple{"--run-at", !options.run_at.empty(), "run_at"},
        std::tuple{"--max-attempts", options.max_attempts.has_value(), "max_attempts"},
        std::tuple{"--timeout", !options.timeout.empty(), "timeout_ms"},
        std::tuple{"--backoff", !options.backoff.empty(), "backoff"},
        std::tuple{"--backoff-base", !options.backoff_base.empty(), "backoff_base_ms"},
        std::tuple{"--backoff-cap", !options.backoff_cap.empty(), "backoff_cap_ms"},
        std::tuple{"--deadline", !options.deadline.empty(), "deadline_in_ms"},
        std::tuple{"--expires-in", !options.expires_in.empty(), "expires_in_ms"},
        std::tuple{"--durability", !options.durability.empty(), "durability"},
        std::tuple{"--options", !options.job_options.empty(), "options"}})
    if (given)
      return Fail(ErrorCode::kInvalidArgument, "{}: is of one job, and --batch has them in its lines: give '{}' there", name,
                  key);
  return {};
}

Result<ExitCode> DoSubmit(const Options& options) {
  if (options.batch.empty() == options.kind.empty())
    return Fail(ErrorCode::kInvalidArgument, "job submit: give --kind (and --payload), or --batch FILE");
  if (!options.then.empty() && options.batch.empty())
    return Fail(ErrorCode::kInvalidArgument, "job submit: --then is the end of a --batch");
  if (!options.batch.empty()) MILLRACE_TRY(CheckNoSingle(options));
  MILLRACE_TRY_ASSIGN(const auto context, Context::Make(options, "job"));
  return options.then.empty() ? SubmitSingles(options, *context) : SubmitBatch(options, *context);
}

}  // namespace

ExitCode JobSubmit(const Options& options) { return Finish(DoSubmit(options)); }

}  // namespace millrace::cli
