#include "broker/dispatch_lease.h"

namespace millrace::dispatch {

std::uint64_t Worker::Credit() const {
  if (draining || unreachable) return 0;
  const std::uint64_t used = granted + reserved;
  return credit_limit > used ? credit_limit - used : 0;
}

void Worker::Hold(Lease& lease) {
  if (lease.place != Lease::kNowhere) return;
  lease.place = static_cast<std::uint32_t>(leases.size());
  leases.push_back(&lease);
}

void Worker::Drop(Lease& lease) {
  if (lease.place == Lease::kNowhere) return;
  leases.back()->place = lease.place;
  leases[lease.place] = leases.back();
  leases.pop_back();
  lease.place = Lease::kNowhere;
}

}  // namespace millrace::dispatch
