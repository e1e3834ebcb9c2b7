// The strict JSON codec of the model's values. Private to the .cc files of this folder: it pulls in nlohmann/json.
//
// A type is described once, by `Describe(archive, value)`; JsonWriter and JsonReader are the two archives. A field with a
// default is left out while it has that value, so that payloads stay small and a new field changes no stored hash. Keys
// come out in the order of description, without white space.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/model/pipeline.h"

namespace millrace::json_codec {

using Json = nlohmann::ordered_json;

template <class T, class Of>
concept MaybeConst = std::same_as<std::remove_const_t<T>, Of>;

inline const char* KeyOf(const ExtractSpec&) { return "extract"; }
inline const char* KeyOf(const TransformSpec&) { return "transform"; }
inline const char* KeyOf(const LoadSpec&) { return "load"; }
inline const char* KeyOf(const CommandSpec&) { return "command"; }

class JsonWriter {
 public:
  template <class T>
  void operator()(const char* key, const T& value) {
    json_[key] = Encode(value);
  }
  template <class T>
  void operator()(const char* key, const T& value, const T& unless) {
    if (!(value == unless)) json_[key] = Encode(value);
  }
  template <class T>
  void operator()(const char* key, const std::optional<T>& value) {
    if (value) json_[key] = Encode(*value);
  }
  // The alternatives of a variant are keys of the same object, of which exactly one is there.
  template <class Work>
  void OneOf(const Work& work) {
    std::visit([&](const auto& alternative) { json_[KeyOf(alternative)] = Encode(alternative); }, work);
  }
  Json Take() { return std::move(json_); }

 private:
  template <class T>
  static Json Encode(const T& value) {
    if constexpr (std::is_same_v<T, std::string> || std::is_arithmetic_v<T>) {
      return value;
    } else if constexpr (std::is_enum_v<T>) {
      return std::string(Name(value));
    } else if constexpr (std::is_same_v<T, Millis>) {
      return value.count();
    } else if constexpr (std::is_same_v<T, WallTime>) {
      return ToUnixMicros(value);
    } else if constexpr (requires { value.uuid; }) {
      return value.ToString();
    } else if constexpr (std::is_same_v<T, OrgId> || std::is_same_v<T, Token>) {
      return value.value();
    } else if constexpr (std::is_same_v<T, std::map<std::string, std::string>>) {
      Json object = Json::object();
      for (const auto& [key, item] : value) object[key] = item;
      return object;
    } else if constexpr (requires {
                           typename T::value_type;
                           value.size();
                         }) {
      Json array = Json::array();
      for (const auto& item : value) array.push_back(Encode(item));
      return array;
    } else {
      JsonWriter nested;
      Describe(nested, value);
      return nested.Take();
    }
  }

  Json json_ = Json::object();
};

// Reads one object. The first error is kept, the rest is skipped. Every key must be described.
class JsonReader {
 public:
  JsonReader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
    if (!json_.is_object()) Wrong("", "expected an object");
  }
  template <class T>
  void operator()(const char* key, T& value) {
    if (error_) return;
    if (const Json* field = Find(key)) return Decode(*field, key, value);
    Wrong(key, "is missing");
  }
  template <class T>
  void operator()(const char* key, T& value, const T& unless) {
    if (error_) return;
    if (const Json* field = Find(key)) return Decode(*field, key, value);
    value = unless;
  }
  template <class T>
  void operator()(const char* key, std::optional<T>& value) {
    if (error_) return;
    value.reset();
    if (const Json* field = Find(key)) Decode(*field, key, value.emplace());
  }
  template <class... Alternatives>
  void OneOf(std::variant<Alternatives...>& work) {
    if (error_) return;
    int found = 0;
    (TryAlternative<Alternatives>(work, found), ...);
    if (found != 1) Wrong("", "expected exactly one kind of work");
  }
  // The error, or that a key was not described.
  std::optional<Error> Finish() {
    if (!error_ && read_ != json_.size()) {
      for (const auto& [key, value] : json_.items())
        if (!Known(key)) Wrong(key, "unknown key");
    }
    return std::move(error_);
  }

 private:
  const Json* Find(const char* key) {
    const auto it = json_.find(key);
    if (it == json_.end()) return nullptr;
    keys_.emplace_back(key);
    ++read_;
    return &*it;
  }
  bool Known(std::string_view key) const {
    for (const std::string_view k : keys_)
      if (k == key) return true;
    return false;
  }
  std::string At(std::string_view key) const {
    if (key.empty()) return path_;
    return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
  }
  void Wrong(std::string_view key, std::string_view what) {
    if (!error_) error_ = Error{ErrorCode::kCorrupt, At(key) + ": " + std::string(what)};
  }
  template <class Alternative, class Work>
  void TryAlternative(Work& work, int& found) {
    const char* key = KeyOf(Alternative{});
    if (const Json* field = Find(key)) {
      ++found;
      Decode(*field, key, work.template emplace<Alternative>());
    }
  }
  template <class T>
  void Decode(const Json& field, const std::string& key, T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      if (!field.is_string()) return Wrong(key, "expected a string");
      value = field.get_ref<const std::string&>();
    } else if constexpr (std::is_same_v<T, bool>) {
      if (!field.is_boolean()) return Wrong(key, "expected true or false");
      value = field.get<bool>();
    } else if constexpr (std::is_integral_v<T>) {
      DecodeInteger(field, key, value);
    } else if constexpr (std::is_enum_v<T>) {
      DecodeEnum(field, key, value);
    } else if constexpr (std::is_same_v<T, Millis> || std::is_same_v<T, WallTime> || std::is_same_v<T, OrgId> ||
                         std::is_same_v<T, Token>) {
      DecodeWrapped(field, key, value);
    } else if constexpr (requires { value.uuid; }) {
      if (!field.is_string()) return Wrong(key, "expected a string");
      auto id = T::Parse(field.get_ref<const std::string&>());
      if (!id) return Wrong(key, id.error().message);
      value = *id;
    } else if constexpr (std::is_same_v<T, std::map<std::string, std::string>>) {
      if (!field.is_object()) return Wrong(key, "expected an object");
      for (const auto& [name, item] : field.items()) Decode(item, key + "." + name, value[name]);
    } else if constexpr (requires {
                           typename T::value_type;
                           value.size();
                         }) {
      if (!field.is_array()) return Wrong(key, "expected an array");
      value.clear();
      value.reserve(field.size());
      for (const Json& item : field) {
        const std::string at = key + "[" + std::to_string(value.size()) + "]";
        Decode(item, at, value.emplace_back());
      }
    } else {
      JsonReader nested(field, At(key));
      if (!nested.error_) Describe(nested, value);
      if (auto error = nested.Finish(); error && !error_) error_ = std::move(error);
    }
  }
  template <class T>
  void DecodeInteger(const Json& field, const std::string& key, T& value) {
    if (field.is_number_unsigned() && std::in_range<T>(field.get<std::uint64_t>())) {
      value = static_cast<T>(field.get<std::uint64_t>());
    } else if (field.is_number_integer() && !field.is_number_unsigned() && std::in_range<T>(field.get<std::int64_t>())) {
      value = static_cast<T>(field.get<std::int64_t>());
    } else {
      Wrong(key, "expected an integer in range");
    }
  }
  template <class T>
  void DecodeEnum(const Json& field, const std::string& key, T& value) {
    if (!field.is_string()) return Wrong(key, "expected a string");
    const auto parsed = FromName(field.get_ref<const std::string&>(), std::type_identity<T>{});
    if (parsed) return void(value = *parsed);
    std::string known;
    for (std::uint8_t n = 0; n < 16; ++n)
      if (FromName(Name(T{n}), std::type_identity<T>{}) == T{n}) known.append(known.empty() ? "" : ", ").append(Name(T{n}));
    Wrong(key, "unknown value '" + field.get<std::string>() + "'; give one of " + known);
  }
  template <class T>
  void DecodeWrapped(const Json& field, const std::string& key, T& value) {
    std::conditional_t<std::is_same_v<T, Token>, std::uint64_t, std::int64_t> raw = 0;
    DecodeInteger(field, key, raw);
    if constexpr (std::is_same_v<T, WallTime>) {
      value = FromUnixMicros(raw);
    } else {
      value = T{raw};
    }
  }
  static std::optional<FileFormat> FromName(std::string_view n, std::type_identity<FileFormat>) { return ParseFileFormat(n); }
  static std::optional<OnViolation> FromName(std::string_view n, std::type_identity<OnViolation>) {
    return ParseOnViolation(n);
  }
  static std::optional<LoadMode> FromName(std::string_view n, std::type_identity<LoadMode>) { return ParseLoadMode(n); }
  static std::optional<CheckKind> FromName(std::string_view n, std::type_identity<CheckKind>) { return ParseCheckKind(n); }
  static std::optional<Backoff> FromName(std::string_view n, std::type_identity<Backoff>) { return ParseBackoff(n); }
  static std::optional<RunWhen> FromName(std::string_view n, std::type_identity<RunWhen>) { return ParseRunWhen(n); }
  static std::optional<Durability> FromName(std::string_view n, std::type_identity<Durability>) { return ParseDurability(n); }
  static std::optional<UniqueUntil> FromName(std::string_view n, std::type_identity<UniqueUntil>) {
    return ParseUniqueUntil(n);
  }

  const Json& json_;
  std::string path_;
  std::vector<std::string_view> keys_;  // string literals
  std::size_t read_ = 0;
  std::optional<Error> error_;
};

// Whole values. `what` starts the message: "stage_task: stage.retry: unknown key".
template <class T>
std::string Write(const T& value) {
  JsonWriter writer;
  Describe(writer, value);
  // A file name or an error text need not be UTF-8; the rest of the document still has to get through.
  return writer.Take().dump(-1, ' ', false, Json::error_handler_t::replace);
}

template <class T>
Result<T> Read(std::string_view text, std::string_view what) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return Fail(ErrorCode::kCorrupt, "{}: not a JSON document", what);
  JsonReader reader(json, "");
  T value{};
  if (json.is_object()) Describe(reader, value);
  if (auto error = reader.Finish()) {
    if (error->message.starts_with(": ")) error->message.erase(0, 2);
    return Prefixed(std::move(*error), "{}", what);
  }
  return value;
}

}  // namespace millrace::json_codec

// Descriptions live in the namespace of the types, where argument-dependent look-up finds them.
namespace millrace {

template <class Ar, json_codec::MaybeConst<ScheduleSpec> T>
void Describe(Ar& ar, T& v) {
  const ScheduleSpec d;
  ar("name", v.name, d.name);
  ar("cron", v.cron);
  ar("timezone", v.timezone, d.timezone);
  ar("catchup", v.catchup, d.catchup);
  ar("overlap", v.overlap, d.overlap);
  ar("dst", v.dst, d.dst);
  ar("misfire_grace_ms", v.misfire_grace, d.misfire_grace);
  ar("start", v.start, d.start);
  ar("end", v.end, d.end);
  ar("jitter_ms", v.jitter, d.jitter);
  ar("max_parallel", v.max_parallel, d.max_parallel);
}

template <class Ar, json_codec::MaybeConst<RetryPolicy> T>
void Describe(Ar& ar, T& v) {
  const RetryPolicy d;
  ar("max_attempts", v.max_attempts, d.max_attempts);
  ar("backoff_base_ms", v.backoff_base, d.backoff_base);
  ar("backoff_cap_ms", v.backoff_cap, d.backoff_cap);
}

template <class Ar, json_codec::MaybeConst<SourcePlace> T>
void Describe(Ar& ar, T& v) {
  ar("line", v.line);
  ar("column", v.column);
}

template <class Ar, json_codec::MaybeConst<ColumnSpec> T>
void Describe(Ar& ar, T& v) {
  ar("name", v.name);
  ar("type", v.type);
  ar("not_null", v.not_null, false);
}

template <class Ar, json_codec::MaybeConst<ExtractSpec> T>
void Describe(Ar& ar, T& v) {
  const ExtractSpec d;
  ar("from", v.from);
  ar("paths", v.paths);
  ar("format", v.format, d.format);
  ar("columns", v.columns, d.columns);
  ar("options", v.options, d.options);
  ar("copy", v.copy, d.copy);
  ar("allow_empty", v.allow_empty, d.allow_empty);
}

template <class Ar, json_codec::MaybeConst<TransformSpec> T>
void Describe(Ar& ar, T& v) {
  ar("sql", v.sql);
}

template <class Ar, json_codec::MaybeConst<LoadSpec> T>
void Describe(Ar& ar, T& v) {
  const LoadSpec d;
  ar("from", v.from);
  ar("to", v.to);
  ar("table", v.table, d.table);
  ar("path", v.path, d.path);
  ar("mode", v.mode);
  ar("key", v.key, d.key);
  ar("allow_empty", v.allow_empty, d.allow_empty);
  ar("provenance", v.provenance, d.provenance);
}

template <class Ar, json_codec::MaybeConst<CommandSpec> T>
void Describe(Ar& ar, T& v) {
  const CommandSpec d;
  ar("argv", v.argv);
  ar("env", v.env, d.env);
}

template <class Ar, json_codec::MaybeConst<CheckSpec> T>
void Describe(Ar& ar, T& v) {
  const CheckSpec d;
  ar("kind", v.kind);
  ar("columns", v.columns, d.columns);
  ar("values", v.values, d.values);
  ar("expression", v.expression, d.expression);
  ar("min_rows", v.min_rows);
  ar("max_rows", v.max_rows);
}

template <class Ar, json_codec::MaybeConst<ContractSpec> T>
void Describe(Ar& ar, T& v) {
  const ContractSpec d;
  ar("columns", v.columns);
  ar("on_violation", v.on_violation, d.on_violation);
}

template <class Ar, json_codec::MaybeConst<StageSpec> T>
void Describe(Ar& ar, T& v) {
  const StageSpec d;
  ar("name", v.name);
  ar.OneOf(v.work);
  ar("contract", v.contract);
  ar("checks", v.checks, d.checks);
  ar("after", v.after, d.after);
  ar("depends_on", v.depends_on, d.depends_on);
  ar("inputs", v.inputs, d.inputs);
  ar("param_names", v.param_names, d.param_names);
  ar("retry", v.retry, d.retry);
  ar("backoff", v.backoff, d.backoff);
  ar("no_retry", v.no_retry, d.no_retry);
  ar("timeout_ms", v.timeout, d.timeout);
  ar("deadline_ms", v.deadline, d.deadline);
  ar("queue", v.queue, d.queue);
  ar("priority", v.priority, d.priority);
  ar("limit_key", v.limit_key, d.limit_key);
  ar("route_rows", v.route_rows, d.route_rows);
  ar("place", v.place, d.place);
  ar("sql_place", v.sql_place, d.sql_place);
}

}  // namespace millrace
