#include "client/bench/sample_csv.h"

#include <fmt/format.h>

#include <array>
#include <fstream>
#include <iterator>
#include <string_view>

namespace millrace::bench {
namespace {

constexpr std::array<std::string_view, 10> kCountries{"de", "fr", "us", "gb", "it", "es", "nl", "pl", "jp", "br"};
constexpr std::array<std::string_view, 5> kStatuses{"new", "paid", "shipped", "returned", "cancelled"};
constexpr std::size_t kBufferBytes = 1u << 20;
constexpr std::uint64_t kFirstKey = 10'000'000, kChangedEach = 10;

}  // namespace

namespace {

Result<SampleFile> Write(const std::string& path, std::uint64_t rows, bool changes) {
  std::ofstream out(path, std::ios::binary);
  std::string text = "order_id,customer_id,created_at,ship_date,qty,unit_price,discount,country,sku,status\n";
  SampleFile file;
  std::uint64_t state = 88'172'645'463'325'252ULL;
  const auto next = [&] {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  };
  const auto flush = [&] {
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    file.bytes += text.size();
    text.clear();
  };
  for (std::uint64_t i = 1; i <= rows; ++i) {
    const std::uint64_t r = next(), q = next();
    if (changes && i % kChangedEach != 0) continue;
    ++file.rows;
    const bool keyed = r % 50 != 0;
    auto at = std::back_inserter(text);
    if (keyed || changes) fmt::format_to(at, "{}", kFirstKey + i);
    if (keyed != changes) {
      ++file.kept;
      file.key_sum += kFirstKey + i;
    }
    fmt::format_to(at, ",{},{}-{:02}-{:02} {:02}:{:02}:{:02}", 1 + (r >> 8) % 2'000'000, 2019 + (r >> 32) % 6,
                   1 + (r >> 36) % 12, 1 + (r >> 40) % 28, (r >> 44) % 24, (r >> 48) % 60, (r >> 52) % 60);
    const std::uint64_t cents = (q >> 20) % 2'000'000;
    fmt::format_to(at, ",{}-{:02}-{:02},{},{}.{:02},0.{:04},{},sku-{:06},{}\n", 2019 + (q >> 2) % 6, 1 + (q >> 6) % 12,
                   1 + (q >> 10) % 28, 1 + (q >> 14) % 200 + (changes ? 1 : 0), cents / 100, cents % 100, (q >> 30) % 10'000,
                   kCountries[(q >> 40) % kCountries.size()], (q >> 44) % 100'000, kStatuses[(q >> 56) % kStatuses.size()]);
    if (text.size() >= kBufferBytes) flush();
  }
  flush();
  out.close();
  if (!out) return Fail(ErrorCode::kUnavailable, "cannot write {}", path);
  return file;
}

}  // namespace

Result<SampleFile> WriteSampleCsv(const std::string& path, std::uint64_t rows) { return Write(path, rows, false); }
Result<SampleFile> WriteSampleChanges(const std::string& path, std::uint64_t rows) { return Write(path, rows, true); }

}  // namespace millrace::bench
