#include "common/base/clock.h"

#include <cstdio>
#include <cstdlib>

namespace millrace {

MonoTime SystemClock::Now() const { return std::chrono::time_point_cast<Micros>(std::chrono::steady_clock::now()); }

WallTime SystemClock::WallNow() const { return std::chrono::time_point_cast<Micros>(std::chrono::system_clock::now()); }

std::string ToRfc3339(WallTime t) {
  using namespace std::chrono;
  const auto day = floor<days>(t);
  const year_month_day ymd{day};
  const hh_mm_ss<Micros> hms{t - day};
  std::string text =
      fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", static_cast<int>(ymd.year()), static_cast<unsigned>(ymd.month()),
                  static_cast<unsigned>(ymd.day()), hms.hours().count(), hms.minutes().count(), hms.seconds().count());
  if (const auto fraction = hms.subseconds().count(); fraction != 0) text += fmt::format(".{:06}", fraction);
  return text + "Z";
}

Result<WallTime> ParseRfc3339(std::string_view s) {
  using namespace std::chrono;
  const auto bad = [&] { return Fail(ErrorCode::kInvalidArgument, "'{}' is not a time like 2026-11-21T06:15:00Z", s); };
  const auto digits = [&](std::size_t at, std::size_t n, int& out) {
    out = 0;
    if (at + n > s.size()) return false;
    for (std::size_t i = at; i < at + n; ++i) {
      if (s[i] < '0' || s[i] > '9') return false;
      out = out * 10 + (s[i] - '0');
    }
    return true;
  };
  int y, mo, d, h, mi, sec;
  if (!digits(0, 4, y) || !digits(5, 2, mo) || !digits(8, 2, d) || !digits(11, 2, h) || !digits(14, 2, mi) ||
      !digits(17, 2, sec))
    return bad();
  if (s[4] != '-' || s[7] != '-' || (s[10] != 'T' && s[10] != ' ') || s[13] != ':' || s[16] != ':') return bad();
  const year_month_day ymd{year{y}, month{static_cast<unsigned>(mo)}, day{static_cast<unsigned>(d)}};
  if (!ymd.ok() || h > 23 || mi > 59 || sec > 59) return bad();
  std::size_t at = 19;
  std::int64_t fraction_us = 0;
  if (at < s.size() && s[at] == '.') {
    std::int64_t scale = 100'000;
    for (++at; at < s.size() && s[at] >= '0' && s[at] <= '9'; ++at, scale /= 10) fraction_us += scale * (s[at] - '0');
    if (s[at - 1] == '.') return bad();
  }
  minutes offset{0};
  if (at < s.size() && (s[at] == '+' || s[at] == '-')) {
    int oh, om;
    if (s.size() != at + 6 || s[at + 3] != ':' || !digits(at + 1, 2, oh) || !digits(at + 4, 2, om) || oh > 23 || om > 59)
      return bad();
    offset = (s[at] == '+' ? 1 : -1) * (hours{oh} + minutes{om});
  } else if (s.substr(at) != "Z") {
    return bad();
  }
  return WallTime{sys_days{ymd} + hours{h} + minutes{mi} + seconds{sec} + Micros{fraction_us} - offset};
}

}  // namespace millrace
