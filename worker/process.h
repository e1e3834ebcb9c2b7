// A child under supervision: its output and frames are read and its end is noticed through a Poller. The child may come later
// than this: a nursery makes it (nursery_link.h). Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/base/result.h"
#include "worker/child.h"
#include "worker/log_tail.h"
#include "worker/poller.h"
#include "worker/stage_frames.h"

namespace millrace::worker {

class Process {
 public:
  // `label` names it in the worker's log, where its output appears at debug level.
  static Result<std::unique_ptr<Process>> Start(Poller& poller, const ChildOptions& options, std::string label);
  // One whose child is still to come: Arrive or NeverArrives is called later.
  static std::unique_ptr<Process> Expect(Poller& poller, std::string label);
  ~Process();  // kills and reaps
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // The child. One that is no longer wanted (see SignalGroup) is killed and reaped at once. REQUIRES: made by Expect, once.
  void Arrive(std::unique_ptr<Child> child);
  // There will be no child: the process has ended, with exit code 127 and the reason as its output.
  void NeverArrives(const Error& why);
  bool arrived() const { return child_ != nullptr; }
  // Becomes null when this is destroyed: for who wants to call Arrive if it is still there.
  std::weak_ptr<Process*> handle() const { return self_; }

  // Queues bytes for its stdin and closes it once they are written. A child that is still to come has had none of them until
  // Arrive. Call at most once.
  void Write(std::string bytes);
  // Before the child is there, SIGKILL and SIGTERM end the process: its child will never get what was written.
  void SignalGroup(int signal);

  std::optional<std::string> TakeFrame();  // the next frame from fd 3
  // Set once the process has ended and everything it wrote has been read.
  const std::optional<ExitStatus>& exit() const { return exit_; }
  bool frames_broken() const { return frames_broken_; }  // fd 3 carried something that is no frame
  bool GroupGone() const { return !child_ || child_->GroupGone(); }
  std::string LogText() const { return tail_.Text(); }
  pid_t pid() const { return child_ ? child_->pid() : -1; }
  void set_label(std::string label) { *label_ = std::move(label); }

 private:
  Process(Poller& poller, std::unique_ptr<Child> child, std::string label);
  Result<void> Watch();
  void Unwatch();
  void WriteSome();
  bool ReadSome(Fd& fd, const std::function<void(std::string_view)>& sink);  // false: nothing more to read now
  void OnExit();

  Poller& poller_;
  std::unique_ptr<Child> child_;  // null: to come
  std::shared_ptr<Process*> self_ = std::make_shared<Process*>(this);
  std::shared_ptr<std::string> label_;
  LogTail tail_;
  StageFrameParser parser_;
  std::string unwritten_;
  std::optional<ExitStatus> exit_;
  bool frames_broken_ = false;
};

}  // namespace millrace::worker
