#include "client/cli/submit_plan.h"

namespace millrace::cli {

Result<void> SubmitPlan(BrokerClient& client, Ledger& ledger, const RunPlan& plan, bool watch, MonoTime deadline) {
  if (BrokerClient::FitsOneMessage(plan)) {
    auto submitted = client.SubmitRun(plan, watch, deadline);
    if (submitted || !BrokerClient::IsNotOwner(submitted.error())) return submitted;
  }
  MILLRACE_TRY(ledger.SubmitRun(plan.run, plan.jobs, deadline));
  return watch ? client.Watch(plan.run.org, plan.run.id, deadline) : Result<void>{};
}

}  // namespace millrace::cli
