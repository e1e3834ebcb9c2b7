#include "client/cli/output.h"

#include <fmt/format.h>
#include <wchar.h>

#include <algorithm>
#include <array>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace millrace::cli {
namespace {

using Json = nlohmann::ordered_json;

Json ToJsonValue(const Cell& cell) {
  return std::visit(
      [](const auto& value) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::monostate>) {
          return nullptr;
        } else {
          return value;
        }
      },
      cell);
}

std::string Dump(const Json& value, int indent) { return value.dump(indent, ' ', false, Json::error_handler_t::replace); }

Json RowObject(const Table& table, const std::vector<Cell>& row) {
  Json object = Json::object();
  for (std::size_t i = 0; i < table.columns.size(); ++i) object[table.columns[i]] = ToJsonValue(row[i]);
  return object;
}

std::string CellText(const Cell& cell, bool for_people) {
  if (const auto* n = std::get_if<std::int64_t>(&cell)) return for_people ? HumanCount(*n) : std::to_string(*n);
  if (const auto* d = std::get_if<double>(&cell)) return for_people ? fmt::format("{:.2f}", *d) : fmt::format("{}", *d);
  if (const auto* b = std::get_if<bool>(&cell)) return *b ? "true" : "false";
  if (const auto* s = std::get_if<std::string>(&cell)) return *s;
  return "";
}

std::string CsvField(const Cell& cell) {
  std::string text = CellText(cell, false);
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

bool IsNumber(const Cell& cell) { return std::holds_alternative<std::int64_t>(cell) || std::holds_alternative<double>(cell); }

// One line per row: control characters would break the alignment or the terminal.
std::string Printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return text;
}

std::string FormatForPeople(const Table& table) {
  std::vector<std::size_t> widths;
  std::vector<std::vector<std::string>> texts(table.rows.size());
  for (const auto& name : table.columns) widths.push_back(DisplayWidth(name));
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    for (std::size_t c = 0; c < table.columns.size(); ++c) {
      texts[r].push_back(Printable(CellText(table.rows[r][c], !table.verbatim)));
      widths[c] = std::max(widths[c], DisplayWidth(texts[r][c]));
    }
  }
  std::vector<bool> right(table.columns.size());
  for (std::size_t c = 0; c < table.columns.size(); ++c)
    right[c] =  // a column of numbers; one field a line, as `queue show`, is read from the left
        std::ranges::any_of(table.rows, [&](const auto& row) { return IsNumber(row[c]); }) &&
        std::ranges::none_of(table.rows, [&](const auto& row) { return std::holds_alternative<std::string>(row[c]); });
  std::string out;
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text;
    for (std::size_t c = 0; c < cells.size(); ++c) {
      const std::string padding(widths[c] - DisplayWidth(cells[c]), ' ');
      text += right[c] ? padding + cells[c] : cells[c] + padding;
      if (c + 1 < cells.size()) text += "  ";
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + '\n';
  };
  line(table.columns);
  for (const auto& row : texts) line(row);
  return out;
}

}  // namespace

Result<OutputFormat> ParseOutputFormat(std::string_view name) {
  if (name == "table") return OutputFormat::kTable;
  if (name == "json") return OutputFormat::kJson;
  if (name == "ndjson") return OutputFormat::kNdjson;
  if (name == "csv") return OutputFormat::kCsv;
  return Fail(ErrorCode::kInvalidArgument, "--output: '{}' is not one of table, json, ndjson, csv", name);
}

std::string Format(const Table& table, OutputFormat format) {
  std::string out;
  switch (format) {
    case OutputFormat::kTable: return FormatForPeople(table);
    case OutputFormat::kJson: {
      Json array = Json::array();
      for (const auto& row : table.rows) array.push_back(RowObject(table, row));
      return Dump(array, 2) + '\n';
    }
    case OutputFormat::kNdjson:
      for (const auto& row : table.rows) out += Dump(RowObject(table, row), -1) + '\n';
      return out;
    case OutputFormat::kCsv:
      for (std::size_t c = 0; c < table.columns.size(); ++c) out += (c ? "," : "") + CsvField(Cell{table.columns[c]});
      out += "\r\n";
      for (const auto& row : table.rows) {
        for (std::size_t c = 0; c < row.size(); ++c) out += (c ? "," : "") + CsvField(row[c]);
        out += "\r\n";
      }
      return out;
    case OutputFormat::kIds:
      for (std::size_t r = 0; r < table.rows.size(); ++r)
        if (r == 0 || table.rows[r][0] != table.rows[r - 1][0]) out += Printable(CellText(table.rows[r][0], false)) + '\n';
      return out;
  }
  return out;
}

void Print(const Table& table, OutputFormat format) {
  const std::string text = Format(table, format);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string FormatChecked(const Table& table, std::string_view rows) {
  Json array = Json::array();
  for (const auto& row : table.rows) array.push_back(RowObject(table, row));
  Json document{{"ok", true}, {"errors", Json::array()}};
  document[std::string(rows)] = std::move(array);
  return Dump(document, 2) + '\n';
}

std::string HumanCount(std::int64_t n) {
  std::string digits = std::to_string(n);
  const std::size_t first = n < 0 ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

std::string HumanBytes(std::int64_t bytes) {
  static constexpr std::array<std::string_view, 5> kUnits{"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (std::abs(value) >= 1000 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanDuration(Micros d) {
  const auto us = d.count();
  if (us < 10'000) return fmt::format("{:.1f} ms", static_cast<double>(us) / 1e3);
  if (us < 1'000'000) return fmt::format("{} ms", us / 1000);
  if (us < 60'000'000) return fmt::format("{:.2f} s", static_cast<double>(us) / 1e6);
  if (us < 3'600'000'000) return fmt::format("{} min {} s", us / 60'000'000, us / 1'000'000 % 60);
  return fmt::format("{} h {} min", us / 3'600'000'000, us / 60'000'000 % 60);
}

Cell DurationCell(Micros d, OutputFormat format) {
  return format == OutputFormat::kTable ? Cell{HumanDuration(d)} : Cell{std::int64_t{d.count() / 1000}};
}

std::string Ellipsized(std::string_view text, std::size_t columns) {
  if (DisplayWidth(text) <= columns) return std::string(text);
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t next = at + 1;
    while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xC0U) == 0x80U) ++next;
    if (DisplayWidth(text.substr(0, next)) > columns - 3) break;
    end = at = next;
  }
  return std::string(text.substr(0, end)) + "...";
}

std::size_t DisplayWidth(std::string_view text) {
  static const bool utf8 = std::setlocale(LC_CTYPE, "C.UTF-8") != nullptr;
  if (!utf8) return text.size();
  std::size_t width = 0;
  std::mbstate_t state{};
  for (std::size_t at = 0; at < text.size();) {
    wchar_t c = 0;
    const std::size_t n = std::mbrtowc(&c, text.data() + at, text.size() - at, &state);
    if (n == 0 || n > text.size()) {  // NUL, or not UTF-8
      state = {};
      ++at;
      ++width;
      continue;
    }
    const int columns = wcwidth(c);
    width += columns > 0 ? static_cast<std::size_t>(columns) : 0;
    at += n;
  }
  return width;
}

}  // namespace millrace::cli
