#include "worker/stage/load/fence.h"

#include <openssl/evp.h>

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/check.h"
#include "common/base/limits.h"

namespace millrace::load {
namespace {

using Json = nlohmann::json;

bool IsRetryable(ErrorCode code) {
  return code == ErrorCode::kUnavailable || code == ErrorCode::kTimedOut || code == ErrorCode::kMaybeApplied ||
         code == ErrorCode::kConflict || code == ErrorCode::kLimit;
}

std::string_view ClassOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUnavailable:
    case ErrorCode::kTimedOut:
    case ErrorCode::kMaybeApplied:
    case ErrorCode::kLimit: return "destination_unavailable";
    case ErrorCode::kConflict: return "destination_conflict";
    case ErrorCode::kStale: return "stale_token";
    case ErrorCode::kInvalidArgument: return "data_rejected";
    case ErrorCode::kCorrupt: return "destination_corrupt";
    case ErrorCode::kCancelled: return "cancelled";
    default: return "destination_rejected";
  }
}

std::string OneLine(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n' || c == '\r') {
      if (!out.empty() && out.back() != ' ') out += ' ';
      continue;
    }
    out += c;
  }
  if (out.size() > kErrorMessageBytesMax) out.resize(kErrorMessageBytesMax);
  return out;
}

}  // namespace

Failure::Failure(Error error)
    : error_class(ClassOf(error.code)), message(std::move(error.message)), retryable(IsRetryable(error.code)) {}

std::unexpected<Failure> Refuse(std::string_view error_class, std::string message) {
  return std::unexpected(Failure(error_class, std::move(message), false));
}

std::unexpected<Failure> Fenced() { return Refuse(kFencedErrorClass, "cancelled: no earlier attempt can publish any more"); }

Outcome<void> RequireBalance(const Receipt& r) {
  if (r.rows.Balanced()) return {};
  return Refuse("internal_error", fmt::format("rows do not add up: read {}, loaded {}, deduplicated {}; nothing was committed",
                                              r.rows.read, r.rows.loaded, r.rows.deduplicated));
}

Receipt LoadJob::NewReceipt(std::string plan) const {
  Receipt receipt;
  receipt.effect = order.task.effect;
  receipt.token = order.token;
  receipt.run = order.task.run.ToString();
  receipt.pipeline = order.task.pipeline;
  receipt.stage = order.task.stage.name;
  receipt.target = target;
  receipt.mode = ModeName(spec.mode);
  receipt.plan = std::move(plan);
  receipt.rows.read = rows;
  receipt.checksum = checksum;
  return receipt;
}

std::string_view ModeName(LoadMode mode) {
  switch (mode) {
    case LoadMode::kAppend: return "append";
    case LoadMode::kReplace: return "replace";
    case LoadMode::kMerge: return "merge";
  }
  return "append";
}

std::string Sha256Hex(std::string_view bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  MILLRACE_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1, "SHA-256 failed");
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned int i = 0; i < size; ++i) {
    out += kHex[digest[i] >> 4];
    out += kHex[digest[i] & 15];
  }
  return out;
}

std::string ReceiptToJson(const Receipt& r) {
  return Json{{"effect", r.effect},
              {"token", r.token.value()},
              {"run", r.run},
              {"pipeline", r.pipeline},
              {"stage", r.stage},
              {"target", r.target},
              {"mode", r.mode},
              {"plan", r.plan},
              {"rows_read", r.rows.read},
              {"rows_loaded", r.rows.loaded},
              {"rows_deduplicated", r.rows.deduplicated},
              {"inserted", r.inserted},
              {"updated", r.updated},
              {"unchanged", r.unchanged},
              {"deleted", r.deleted},
              {"bytes", r.bytes},
              {"checksum", r.checksum}}
             .dump(2) +
         "\n";
}

Result<Receipt> ReceiptFromJson(std::string_view text) try {
  const Json json = Json::parse(text);
  Receipt r;
  const auto get = [&](const char* key, auto& into) { json.at(key).get_to(into); };
  std::uint64_t token = 0;
  get("effect", r.effect);
  get("token", token);
  r.token = Token{token};
  get("run", r.run);
  get("pipeline", r.pipeline);
  get("stage", r.stage);
  get("target", r.target);
  get("mode", r.mode);
  get("plan", r.plan);
  get("rows_read", r.rows.read);
  get("rows_loaded", r.rows.loaded);
  get("rows_deduplicated", r.rows.deduplicated);
  get("inserted", r.inserted);
  get("updated", r.updated);
  get("unchanged", r.unchanged);
  get("deleted", r.deleted);
  get("bytes", r.bytes);
  get("checksum", r.checksum);
  return r;
} catch (const Json::exception& e) {
  return Fail(ErrorCode::kCorrupt, "receipt: {}", e.what());
}

Failure Stale(const LoadJob& job, std::uint64_t seen) {
  return Failure("stale_token",
                 fmt::format("token {} of effect '{}' is older than token {}, which the destination has seen",
                             job.order.token.value(), job.order.task.effect, seen),
                 false);
}

StageResult ToResult(const Receipt& receipt, bool already_applied) {
  StageResult result;
  result.ok = true;
  result.rows = receipt.rows;
  result.input_rows = receipt.rows.read;
  result.bytes_written = receipt.bytes;
  result.inserted = receipt.inserted;
  result.updated = receipt.updated;
  result.unchanged = receipt.unchanged;
  result.deleted = receipt.deleted;
  result.already_applied = already_applied;
  result.target = receipt.target;
  result.plan = receipt.plan;
  return result;
}

StageResult ToResult(const LoadJob& job, const Failure& failure) {
  StageResult result;
  result.error_class = failure.error_class;
  result.error = OneLine(fmt::format("load into {}: {}", job.target, failure.message));
  result.retryable = failure.retryable;
  result.target = job.target;
  return result;
}

}  // namespace millrace::load
