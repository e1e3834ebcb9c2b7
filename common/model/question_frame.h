// What a millrace-stage process is asked instead of being given a StageOrder (stage_task.h): the request of a type check
// (worker/stage/check/type_check.h). Frames as there; the child says {"ready":true}, then gives one answer and exits 0.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace millrace {

inline constexpr std::string_view kQuestionBegin = R"({"question":)", kAnswerBegin = R"({"answer":)";

// `json` is a JSON value.
inline std::string QuestionFrame(std::string_view json) { return std::string(kQuestionBegin).append(json).append(1, '}'); }
inline std::string AnswerFrame(std::string_view json) { return std::string(kAnswerBegin).append(json).append(1, '}'); }

// The JSON value of such a frame; absent: it is another one.
inline std::optional<std::string_view> QuestionInFrame(std::string_view frame) {
  if (!frame.starts_with(kQuestionBegin) || !frame.ends_with('}')) return std::nullopt;
  return frame.substr(kQuestionBegin.size(), frame.size() - kQuestionBegin.size() - 1);
}
inline std::optional<std::string_view> AnswerInFrame(std::string_view frame) {
  if (!frame.starts_with(kAnswerBegin) || !frame.ends_with('}')) return std::nullopt;
  return frame.substr(kAnswerBegin.size(), frame.size() - kAnswerBegin.size() - 1);
}

}  // namespace millrace
