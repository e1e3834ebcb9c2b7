#include "tests/checker/operations.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

namespace millrace::checker {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 7> kOps = {"submit", "grant", "end", "write", "fire", "own", "load"};
constexpr std::size_t kShownBytes = 120;  // of a line that is no operation

history::Type TypeOf(const std::string& name) {
  if (name == "invoke") return history::Type::kInvoke;
  if (name == "ok") return history::Type::kOk;
  if (name == "fail") return history::Type::kFail;
  if (name == "unknown") return history::Type::kUnknown;
  throw std::invalid_argument("type");
}

Uuid IdOf(const Json& text) {
  const auto id = Uuid::Parse(text.get<std::string>());
  return id ? *id : throw std::invalid_argument("id");
}

// "id", ["id", token], ["id", "word"] or ["id", token, "word"].
std::vector<Item> ItemsOf(const Json& line, const char* name) {
  std::vector<Item> items;
  const auto list = line.find(name);
  if (list == line.end()) return items;
  for (const Json& entry : *list) {
    Item item{.id = IdOf(entry.is_array() ? entry.at(0) : entry)};
    for (std::size_t i = 1; entry.is_array() && i < entry.size(); ++i) {
      if (entry[i].is_number()) item.token = entry[i].get<std::uint64_t>();
      if (entry[i].is_string()) item.word = entry[i].get<std::string>();
    }
    items.push_back(std::move(item));
  }
  return items;
}

// ["pipeline", "schedule", micros, generation, "run" or null].
std::vector<FiredSlot> SlotsOf(const Json& line) {
  std::vector<FiredSlot> slots;
  for (const Json& entry : line.value("slots", Json::array())) {
    FiredSlot& slot = slots.emplace_back();
    slot.pipeline = entry.at(0).get<std::string>();
    slot.schedule = entry.at(1).get<std::string>();
    slot.slot = entry.at(2).get<std::int64_t>();
    slot.generation = entry.at(3).get<std::int64_t>();
    if (entry.at(4).is_string()) slot.run = IdOf(entry[4]);
  }
  return slots;
}

// Throws what the JSON library throws, or std::invalid_argument: it is none.
Operation OperationOf(const Json& line, std::size_t file) {
  Operation o;
  o.file = file;
  o.at = line.at("m").get<std::int64_t>();
  o.who = line.at("who").get<std::string>();
  o.op = line.at("op").get<std::string>();
  if (std::ranges::find(kOps, o.op) == kOps.end()) throw std::invalid_argument("op");
  o.type = TypeOf(line.at("type").get<std::string>());
  o.number = line.contains("request") ? line["request"].get<std::uint64_t>() : line.value("n", std::uint64_t{0});
  if (o.op == "write") {
    o.runs = ItemsOf(line, "runs");
    o.jobs = ItemsOf(line, "jobs");
    o.attempts = ItemsOf(line, "attempts");
    o.outcomes = ItemsOf(line, "outcomes");
    o.slots = SlotsOf(line);
    for (const Json& hold : line.value("holds", Json::array()))
      o.holds.push_back({hold.at(0).get<std::uint64_t>(), hold.at(1).get<std::uint64_t>()});
  } else if (o.op == "fire") {
    o.slots = SlotsOf(line);
  } else if (o.op == "own") {
    o.holds.push_back({line.at("shard").get<std::uint64_t>(), line.at("epoch").get<std::uint64_t>()});
  } else if (o.op == "load") {
    o.items.push_back({.id = IdOf(line.at("job")), .token = line.at("token").get<std::uint64_t>()});
    o.effect = line.at("effect").get<std::string>();
    o.again = line.value("again", false);
  } else {
    o.items = ItemsOf(line, line.contains("items") ? "items" : "jobs");
  }
  return o;
}

void ReadFile(const std::filesystem::path& path, History& history) {
  std::ifstream in(path);
  std::size_t number = 0;
  for (std::string text; std::getline(in, text);) {
    ++number;
    try {
      history.operations.push_back(OperationOf(Json::parse(text), history.files));
      history.operations.back().order = history.operations.size();
    } catch (const std::exception&) {
      if (in.eof())  // it has no end: its process was killed, or lost power, while it wrote
        ++history.torn;
      else
        history.unreadable.push_back(fmt::format("{}:{}: '{}'", path.filename().string(), number, text.substr(0, kShownBytes)));
    }
  }
  if (in.bad()) history.unreadable.push_back(fmt::format("{}:{}: cannot be read on", path.filename().string(), number + 1));
  ++history.files;
}

}  // namespace

Result<History> ReadHistory(const std::string& folder) {
  History history;
  std::error_code ec;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ec))
    if (entry.path().extension() == ".jsonl") paths.push_back(entry.path());
  if (ec) return Fail(ErrorCode::kNotFound, "{}: {}", folder, ec.message());
  std::ranges::sort(paths);
  for (const auto& path : paths) ReadFile(path, history);
  std::ranges::sort(history.operations, {}, [](const Operation& o) { return std::pair(o.at, o.order); });
  return history;
}

}  // namespace millrace::checker
