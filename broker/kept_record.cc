#include "broker/kept_record.h"

#include <fmt/format.h>

#include <charconv>

namespace millrace {
namespace {

// Up to the next space, which goes too.
template <class Number>
std::optional<Number> TakeNumber(std::string_view& text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end == text.data() + text.size() || *end != ' ') return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
  return number;
}

}  // namespace

std::uint64_t KeptRecord::Use(MonoTime now) {
  if (!on_) {
    on_ = true;
    ++number_;
  }
  idle_at_ = now + kKeptRecordIdle;
  return number_;
}

void KeptRecord::Back(std::span<const QueueEntry> entries) {
  for (const QueueEntry& entry : entries) {
    if (!on_) return;
    if (IsKeptLine(entry.line) && lines_[entry.line].insert(entry.id).second && ++jobs_ > kKeptRecordJobsMax) End();
  }
}

void KeptRecord::End() {
  on_ = false;
  lines_.clear();
  jobs_ = 0;
}

std::string KeptPlace::ToString() const {
  return fmt::format("{} {} {}{}", epoch.value(), record, after ? 'm' : 'q', after ? std::string(after->AsBytes()) : queue);
}

std::optional<KeptPlace> KeptPlace::Parse(std::string_view text) {
  const auto epoch = TakeNumber<decltype(Epoch{}.value())>(text);
  const auto record = epoch ? TakeNumber<std::uint64_t>(text) : std::nullopt;
  if (!record || text.empty()) return std::nullopt;
  const std::string_view rest = text.substr(1);
  if (text.front() == 'q') return KeptPlace{.epoch = Epoch{*epoch}, .record = *record, .after = {}, .queue = std::string(rest)};
  const auto after = Uuid::FromBytes(rest);
  if (text.front() != 'm' || !after) return std::nullopt;
  return KeptPlace{.epoch = Epoch{*epoch}, .record = *record, .after = JobId{*after}, .queue = {}};
}

}  // namespace millrace
