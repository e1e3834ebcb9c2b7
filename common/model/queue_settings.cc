#include "common/model/queue_settings.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>
#include <vector>

#include "common/model/json_codec.h"
#include "common/model/whole_org.h"

namespace millrace {
namespace {

struct Unit {
  std::string_view name;
  std::int64_t ms;
};
constexpr Unit kUnits[] = {{"ms", 1}, {"s", 1000}, {"m", 60'000}, {"h", 3'600'000}};

// "250ms", "s" (one second); nothing for anything else.
std::optional<Millis> ParsePeriod(std::string_view text) {
  std::int64_t n = 1;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), n);
  const std::string_view unit =
      ec == std::errc::invalid_argument ? text : text.substr(static_cast<std::size_t>(end - text.data()));
  if (ec == std::errc::result_out_of_range || n < 1 || n > kRatePeriodMax.count()) return std::nullopt;
  for (const Unit& u : kUnits)
    if (u.name == unit) return Millis{n * u.ms};
  return std::nullopt;
}

std::string PeriodText(Millis period) {
  std::string text = fmt::format("{}ms", period.count());
  for (const Unit& u : kUnits)
    if (period.count() % u.ms == 0) text = fmt::format("{}{}", period.count() / u.ms, u.name);
  return text;
}

Result<void> CheckRange(std::string_view field, std::uint64_t value, std::uint64_t low, std::uint64_t high) {
  if (value >= low && value <= high) return {};
  return Fail(ErrorCode::kInvalidArgument, "{}: {} is not in [{}, {}]", field, value, low, high);
}

Result<void> CheckRate(std::string_view field, const Rate& rate) {
  MILLRACE_TRY(CheckRange(field, rate.count, 0, kRateCountMax));
  MILLRACE_TRY(CheckRange(fmt::format("{}: burst", field), rate.burst, 0, kRateCountMax));
  if (rate.per < kRatePeriodMin || rate.per > kRatePeriodMax)
    return Fail(ErrorCode::kInvalidArgument, "{}: a period of {} ms; give one from {} to {} ms", field, rate.per.count(),
                kRatePeriodMin.count(), kRatePeriodMax.count());
  if (rate.count == 0 && rate.burst > 0)
    return Fail(ErrorCode::kInvalidArgument, "{}: a burst of {} without a rate; give the rate too", field, rate.burst);
  return {};
}

// A queue's field that is set for the whole org; nothing when there is none.
std::optional<std::string_view> QueuesOwnField(const QueueSettings& s) {
  const QueueSettings d;
  if (s.paused != d.paused) return "paused";
  if (s.order != d.order) return "order";
  if (s.weights != d.weights) return "weights";
  if (s.aging != d.aging) return "aging";
  if (s.concurrency != d.concurrency) return "concurrency";
  if (s.key_concurrency != d.key_concurrency) return "key_concurrency";
  if (s.rate != d.rate) return "rate";
  if (s.key_rate != d.key_rate) return "key_rate";
  if (s.durability != d.durability) return "durability";
  return std::nullopt;
}

}  // namespace

template <class Ar, json_codec::MaybeConst<Rate> T>
void Describe(Ar& ar, T& v) {
  const Rate d;
  ar("count", v.count, d.count);
  ar("per_ms", v.per, d.per);
  ar("burst", v.burst, d.burst);
}

std::string ToString(const Rate& rate) {
  if (!rate.Limited()) return "none";
  std::string text = fmt::format("{}/{}", rate.count, PeriodText(rate.per));
  if (rate.burst > 0) text += fmt::format(" burst {}", rate.burst);
  return text;
}

Result<Rate> ParseRate(std::string_view field, std::string_view text) {
  if (text == "none" || text == "0") return Rate{};
  Rate rate;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), rate.count);
  const std::string_view rest = ec == std::errc{} ? text.substr(static_cast<std::size_t>(end - text.data())) : "";
  const auto period = rest.starts_with('/') ? ParsePeriod(rest.substr(1)) : std::nullopt;
  if (!period || rate.count == 0)
    return Fail(ErrorCode::kInvalidArgument, "{}: '{}' is no rate; write jobs/period such as 100/1s, 5/1m, or none", field,
                text);
  rate.per = *period;
  MILLRACE_TRY(CheckRate(field, rate));
  return rate;
}

std::string_view Name(QueueOrder order) { return order == QueueOrder::kWeighted ? "weighted" : "strict"; }

Result<QueueOrder> ParseQueueOrder(std::string_view name) {
  if (name == "strict") return QueueOrder::kStrict;
  if (name == "weighted") return QueueOrder::kWeighted;
  return Fail(ErrorCode::kInvalidArgument, "order: '{}' is neither strict nor weighted", name);
}

Result<Durability> ParseQueueDurability(std::string_view name) {
  if (const auto durability = ParseDurability(name)) return *durability;
  return Fail(ErrorCode::kInvalidArgument, "durability: '{}' is neither ledger nor redis", name);
}

void NoteClassChange(const QueueSettings& before, WallTime now, QueueSettings& next) {
  next.redis_until = before.redis_until;
  if (before.durability == Durability::kRedis && next.durability != Durability::kRedis) next.redis_until = now;
  if (next.redis_until && now - *next.redis_until > kClassChangeDoubt) next.redis_until.reset();
}

namespace {

// As JSON has them: an array of any length, an order by name.
struct Stored {
  QueueSettings settings;
  std::string order;
  std::vector<std::uint32_t> weights;
};

std::vector<std::uint32_t> DefaultWeights() {
  const QueueSettings d;
  return {d.weights.begin(), d.weights.end()};
}

template <class Ar, json_codec::MaybeConst<Stored> T>
void Describe(Ar& ar, T& v) {
  const QueueSettings d;
  ar("paused", v.settings.paused, d.paused);
  ar("order", v.order, std::string(Name(d.order)));
  ar("weights", v.weights, DefaultWeights());
  ar("aging_ms", v.settings.aging, d.aging);
  ar("concurrency", v.settings.concurrency, d.concurrency);
  ar("key_concurrency", v.settings.key_concurrency, d.key_concurrency);
  ar("rate", v.settings.rate, d.rate);
  ar("key_rate", v.settings.key_rate, d.key_rate);
  ar("max_waiting_jobs", v.settings.max_waiting_jobs, d.max_waiting_jobs);
  ar("max_waiting_bytes", v.settings.max_waiting_bytes, d.max_waiting_bytes);
  ar("durability", v.settings.durability, d.durability);
  ar("redis_until_us", v.settings.redis_until);
}

}  // namespace

std::string ToJson(const QueueSettings& settings) {
  return json_codec::Write(Stored{.settings = settings,
                                  .order = std::string(Name(settings.order)),
                                  .weights = {settings.weights.begin(), settings.weights.end()}});
}

Result<QueueSettings> QueueSettingsFromJson(std::string_view text) {
  if (text.size() > kQueueSettingsBytesMax)
    return Fail(ErrorCode::kInvalidArgument, "queue settings: {} bytes, limit {}", text.size(), kQueueSettingsBytesMax);
  auto stored = json_codec::Read<Stored>(text, "queue settings");
  if (!stored) return Fail(ErrorCode::kInvalidArgument, "{}", stored.error().message);
  QueueSettings settings = std::move(stored->settings);
  MILLRACE_TRY_ASSIGN(settings.order, ParseQueueOrder(stored->order));
  if (stored->weights.size() != settings.weights.size())
    return Fail(ErrorCode::kInvalidArgument, "weights: {} numbers; give {}, the most urgent priority's first",
                stored->weights.size(), settings.weights.size());
  std::ranges::copy(stored->weights, settings.weights.begin());
  settings.queue = "x";  // not in the text: the caller's
  MILLRACE_TRY(Validate(settings));
  settings.queue.clear();
  return settings;
}

Result<void> Validate(const QueueSettings& s) {
  if (s.queue.empty() || s.queue.size() > kNameBytesMax ||
      std::ranges::any_of(s.queue, [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
    return Fail(ErrorCode::kInvalidArgument, "queue: '{}' is no name; give 1 to {} bytes without control characters", s.queue,
                kNameBytesMax);
  if (const auto field = s.queue == kWholeOrg ? QueuesOwnField(s) : std::nullopt)
    return Fail(
        ErrorCode::kInvalidArgument,
        "{}: '{}' is the whole org and has only max_waiting_jobs and max_waiting_bytes; set this for a queue by its name",
        *field, kWholeOrg);
  for (const std::uint32_t weight : s.weights) MILLRACE_TRY(CheckRange("weights", weight, 1, kQueueWeightMax));
  if (s.aging < kAgingMin || s.aging > kAgingMax)
    return Fail(ErrorCode::kInvalidArgument,
                "aging: {} ms is not in [{}, {}]: it cannot be switched off, or strict order starves", s.aging.count(),
                kAgingMin.count(), kAgingMax.count());
  MILLRACE_TRY(CheckRange("concurrency", s.concurrency, 0, kQueueConcurrencyMax));
  MILLRACE_TRY(CheckRange("key_concurrency", s.key_concurrency, 0, kQueueConcurrencyMax));
  MILLRACE_TRY(CheckRate("rate", s.rate));
  MILLRACE_TRY(CheckRate("key_rate", s.key_rate));
  MILLRACE_TRY(CheckRange("max_waiting_jobs", s.max_waiting_jobs, 0, kQueueWaitingJobsMax));
  return CheckRange("max_waiting_bytes", s.max_waiting_bytes, 0, kQueueWaitingBytesMax);
}

}  // namespace millrace
