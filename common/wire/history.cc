#include "common/wire/history.h"

#include <fmt/format.h>

#include <string>

#include "common/base/history.h"

namespace millrace::wire {
namespace {

using history::Type;

class Recorder {
 public:
  explicit Recorder(std::string_view who) : who_(who) {}

  void operator()(const SubmitJobs& m) const {
    std::string jobs;
    for (const JobSpec& job : m.jobs) Add(jobs, fmt::format(R"(["{}","{}"])", job.id.ToString(), Name(job.options.durability)));
    Write("submit", Type::kInvoke, fmt::format(R"("request":{},"jobs":[{}])", m.request, jobs));
  }
  void operator()(const SubmitRun& m) const {
    Write("submit", Type::kInvoke, fmt::format(R"("request":{},"jobs":[["{}","ledger"]])", m.request, m.run.id.ToString()));
  }
  void operator()(const SubmitReply& m) const {
    std::string items;
    for (const SubmitReply::Item& item : m.accepted)
      if (item.conflict_with.IsNil()) Add(items, fmt::format(R"("{}")", item.id.ToString()));
    Write("submit", Type::kOk, fmt::format(R"("request":{},"items":[{}])", m.request, items));
  }
  void operator()(const Problem& m) const {
    Write("submit", Type::kFail, fmt::format(R"("request":{},"code":{})", m.request, history::Quoted(m.code)));
  }
  void operator()(const Grant& m) const {
    std::string jobs;
    for (const Grant::Job& job : m.jobs) Add(jobs, Attempt(job.id, job.token));
    Write("grant", Type::kInvoke, fmt::format(R"("jobs":[{}])", jobs));
  }
  void operator()(const Ended& m) const {
    std::string jobs;
    for (const AttemptReport& r : m.reports)
      Add(jobs, fmt::format(R"(["{}",{},"{}"])", r.job.ToString(), r.token.value(), Name(r.end)));
    Write("end", Type::kInvoke, fmt::format(R"("jobs":[{}])", jobs));
  }
  void operator()(const EndedReply& m) const {
    std::string accepted, refused;
    for (const EndedReply::Item& item : m.items) Add(item.accepted ? accepted : refused, Attempt(item.job, item.token));
    if (!accepted.empty()) Write("end", Type::kOk, fmt::format(R"("jobs":[{}])", accepted));
    if (!refused.empty()) Write("end", Type::kFail, fmt::format(R"("jobs":[{}])", refused));
  }
  template <class Other>
  void operator()(const Other&) const {}  // changes nothing that is checked

 private:
  static void Add(std::string& list, const std::string& item) {
    if (!list.empty()) list += ',';
    list += item;
  }
  static std::string Attempt(JobId job, Token token) { return fmt::format(R"(["{}",{}])", job.ToString(), token.value()); }
  void Write(std::string_view op, Type type, const std::string& fields) const { history::Write(who_, op, type, fields); }

  std::string_view who_;
};

}  // namespace

void RecordMessage(std::string_view who, const Message& message) {
  if (history::On()) std::visit(Recorder(who), message);
}

}  // namespace millrace::wire
