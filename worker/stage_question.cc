#include "worker/stage_question.h"

#include <signal.h>

#include <string_view>
#include <utility>

#include "common/model/question_frame.h"
#include "worker/stage_frames.h"

namespace millrace::worker {
namespace {

std::string HowItEnded(const ExitStatus& status, std::string_view said) {
  const std::string how = status.signal != 0 ? fmt::format("signal {}", status.signal) : fmt::format("code {}", status.code);
  while (said.ends_with('\n')) said.remove_suffix(1);
  return said.empty() ? how : fmt::format("{}: {}", how, said);
}

}  // namespace

StageQuestion::StageQuestion(std::unique_ptr<Process> process, std::string_view request,
                             std::promise<Result<std::string>> answer)
    : process_(std::move(process)), answer_(std::move(answer)) {
  process_->set_label("question");
  process_->Write(EncodeStageFrame(QuestionFrame(request)));
}

StageQuestion::~StageQuestion() {
  if (!answered_) Answer(Fail(ErrorCode::kCancelled, "the worker ends before the answer"));
}

void StageQuestion::Answer(Result<std::string> answer) {
  answered_ = true;
  answer_.set_value(std::move(answer));
}

bool StageQuestion::Tick() {
  while (auto frame = process_->TakeFrame()) {
    if (answered_) continue;
    if (const auto answer = AnswerInFrame(*frame)) Answer(std::string(*answer));
  }
  if (process_->frames_broken()) process_->SignalGroup(SIGKILL);
  const auto& exit = process_->exit();
  if (!exit) return false;
  if (!answered_)
    Answer(
        Fail(ErrorCode::kCorrupt, "millrace-stage ended without an answer, with {}", HowItEnded(*exit, process_->LogText())));
  return true;
}

}  // namespace millrace::worker
