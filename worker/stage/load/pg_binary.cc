#include "worker/stage/load/pg_binary.h"

#include <algorithm>
#include <array>

namespace millrace::load {
namespace {

constexpr std::array<std::uint32_t, 4> kPow10{1, 10, 100, 1000};

// Digits of `value` in base 10,000, least significant first, appended to `out`. 64-bit division is several times faster
// than 128-bit division, so that the wide type is left as soon as the value fits.
template <std::size_t N>
void AppendGroups(Uint128 value, std::array<std::uint16_t, N>& out, std::size_t& count) {
  while (value > UINT64_MAX) {
    out[count++] = static_cast<std::uint16_t>(value % 10'000);
    value /= 10'000;
  }
  for (auto small = static_cast<std::uint64_t>(value); small != 0; small /= 10'000)
    out[count++] = static_cast<std::uint16_t>(small % 10'000);
}

constexpr int kSmallScaleMax = 16;  // a fraction of so many digits, filled up to whole groups, fits 64 bits
constexpr std::array<std::uint64_t, kSmallScaleMax + 1> kPow10Small = [] {
  std::array<std::uint64_t, kSmallScaleMax + 1> powers{1};
  for (std::size_t i = 1; i < powers.size(); ++i) powers[i] = powers[i - 1] * 10;
  return powers;
}();

// What most decimals are: both parts in 64 bits. REQUIRES: 0 <= scale <= kSmallScaleMax. The number of groups.
template <std::size_t N>
std::size_t SmallGroups(std::uint64_t magnitude, int scale, std::size_t fraction_groups, std::array<std::uint16_t, N>& out) {
  const std::uint64_t power = kPow10Small[static_cast<std::size_t>(scale)];
  std::uint64_t whole = magnitude / power, fraction = magnitude % power;
  fraction *= kPow10[fraction_groups * 4 - static_cast<std::size_t>(scale)];
  std::size_t count = 0;
  for (; count < fraction_groups; fraction /= 10'000) out[count++] = static_cast<std::uint16_t>(fraction % 10'000);
  for (; whole != 0; whole /= 10'000) out[count++] = static_cast<std::uint16_t>(whole % 10'000);
  return count;
}

Uint128 PowerOf10(int exponent) {
  Uint128 power = 1;
  while (exponent-- > 0) power *= 10;
  return power;
}

}  // namespace

void PgBinaryBuffer::Header() {
  static constexpr char kHeader[] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0";
  static_assert(sizeof(kHeader) == 19 + 1);
  Reserve(19);
  std::memcpy(begin_.get() + size_, kHeader, 19);
  size_ += 19;
}

void PgBinaryBuffer::Trailer() {
  Reserve(2);
  Put16(0xffff);
}

void PgBinaryBuffer::Grow(std::size_t bytes) {
  const std::size_t capacity = std::max(capacity_ * 2, size_ + bytes);
  auto bigger = std::make_unique_for_overwrite<char[]>(capacity);
  if (size_ != 0) std::memcpy(bigger.get(), begin_.get(), size_);
  begin_ = std::move(bigger);
  capacity_ = capacity;
}

// Groups of four decimal digits around the point: the fraction is padded on the right to whole groups.
void PgBinaryBuffer::Numeric(Int128 unscaled, int scale) {
  const bool negative = unscaled < 0;
  const Uint128 magnitude = negative ? Uint128{0} - static_cast<Uint128>(unscaled) : static_cast<Uint128>(unscaled);
  std::array<std::uint16_t, 24> groups{};  // least significant first
  const auto fraction_groups = static_cast<std::size_t>((scale + 3) / 4);
  std::size_t count = 0;
  if (magnitude <= UINT64_MAX && scale <= kSmallScaleMax) {
    count = SmallGroups(static_cast<std::uint64_t>(magnitude), scale, fraction_groups, groups);
  } else {
    const Uint128 power = PowerOf10(scale);
    Uint128 fraction = magnitude % power;
    if (const int partial = scale % 4; partial != 0) {
      const std::uint32_t divisor = kPow10[static_cast<std::size_t>(partial)];
      groups[count++] = static_cast<std::uint16_t>(static_cast<std::uint32_t>(fraction % divisor) *
                                                   kPow10[static_cast<std::size_t>(4 - partial)]);
      fraction /= divisor;
    }
    AppendGroups(fraction, groups, count);
    count = fraction_groups;  // leading zero groups of the fraction are there already (zeroed)
    AppendGroups(magnitude / power, groups, count);
  }

  std::size_t low = 0;
  while (count > low && groups[count - 1] == 0) --count;
  while (low < count && groups[low] == 0) ++low;
  const std::size_t digits = count - low;
  const int weight = digits == 0 ? 0 : static_cast<int>(count) - static_cast<int>(fraction_groups) - 1;
  Reserve(4 + 8 + 2 * digits);
  Put32(static_cast<std::uint32_t>(8 + 2 * digits));
  Put16(static_cast<std::uint16_t>(digits));
  Put16(static_cast<std::uint16_t>(static_cast<std::int16_t>(weight)));
  Put16(negative && digits != 0 ? 0x4000 : 0x0000);
  Put16(static_cast<std::uint16_t>(scale));
  for (std::size_t i = count; i > low; --i) Put16(groups[i - 1]);
}

}  // namespace millrace::load
