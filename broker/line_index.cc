#include "broker/line_index.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace millrace {
namespace {

// Idle lines are kept up to so many, because what was busy is likely to be busy again (a line takes about 600 bytes), as long
// as there are not more queues and classes than that: each pick of a worker looks at every class it serves.
constexpr std::size_t kIdleLinesMax = 16'384;
constexpr std::size_t kIdleKeptMax = 1024;
constexpr std::uint64_t kPassScale = 1u << 20;  // of a queue's weighted priorities

std::uint64_t StrideOf(const QueueSettings& settings, std::size_t level) { return kPassScale / settings.weights[level]; }

std::uint64_t Left(std::uint64_t limit, std::uint64_t used) {
  if (limit == 0) return UINT64_MAX;
  return limit > used ? limit - used : 0;
}

}  // namespace

static_assert(sizeof(LineIndex::Line) == 128, "a line has two lines of the cache");

LineIndex::LineIndex() = default;
LineIndex::~LineIndex() = default;

bool LineIndex::NodeOrder::operator()(const Node* a, const Node* b) const {
  return std::tie(a->level, a->pass, a->turn, a->org->id) < std::tie(b->level, b->pass, b->turn, b->org->id);
}

void LineIndex::Queue::Follow(const QueueSettings& its) {
  settings = its;
  aging = its.aging;
  order = its.order;
  limited = its.paused || its.concurrency > 0 || its.rate.Limited();
  limits_keys = its.key_concurrency > 0 || its.key_rate.Limited();
}

// ---- what exists ---------------------------------------------------------------------------------------------------------

void LineIndex::Own(ShardId shard, MonoTime now) { owned_since_[shard] = now; }

LineIndex::Queue& LineIndex::QueueOf(ShardId shard, OrgId org, const std::string& name, MonoTime now) {
  if (Queue* known = FindQueue(org, name)) return *known;
  auto& queue = queues_[{org, name}];
  queue = std::make_unique<Queue>();
  queue->org = org;
  queue->name = name;
  queue_of_.emplace(QueueName{org, queue->name}, queue.get());
  queue->shard = shard;
  QueueSettings settings;
  settings.org = org;
  settings.queue = name;
  queue->Follow(settings);
  const auto owned = owned_since_.find(shard);
  if (owned != owned_since_.end()) queue->bucket = TokenBucket(owned->second);
  Refresh(*queue, now);
  return *queue;
}

LineIndex::Queue* LineIndex::FindQueue(OrgId org, std::string_view name) const {
  const auto it = queue_of_.find(QueueName{org, name});
  return it == queue_of_.end() ? nullptr : it->second;
}

LineIndex::Line* LineIndex::Find(ShardId shard, const std::string& name) const {
  if (last_ != nullptr && last_->shard == shard && last_->name() == name) return last_;
  const auto it = lines_.find(LineName{shard, name});
  if (it == lines_.end()) return nullptr;
  return last_ = it->second.get();
}

LineIndex::Key& LineIndex::KeyOf(ShardId shard, Queue& queue, const std::string& name, MonoTime now) {
  auto& limit = queue.keys[name];
  if (!limit) {
    limit = std::make_unique<Key>();
    limit->queue = &queue;
    limit->name = name;
    const auto since = owned_since_.find(shard);
    if (since != owned_since_.end()) limit->bucket = TokenBucket(since->second);
    Refresh(*limit, now);
  }
  return *limit;
}

LineIndex::Line& LineIndex::NewLine(ShardId shard, const LineRef& named, MonoTime now) {
  auto owned = std::make_unique<Line>(shard, named);
  Line* line = owned.get();
  const LineKey& key = named->key;
  Queue& queue = QueueOf(shard, key.org, key.queue, now);
  ++queue.lines;
  auto& cls = classes_[{key.queue, key.kind, key.root}];
  if (!cls) {
    cls = std::make_unique<Class>();
    cls->name = {key.queue, key.kind, key.root};
    std::erase_if(views_, [](const auto& view) { return view.expired(); });
    for (const auto& weak : views_)
      if (const auto view = weak.lock(); view && view->reach_.Serves(key)) view->served_.push_back(cls.get());
  }
  auto& node = cls->nodes[key.org];
  if (!node) {
    node = std::make_unique<Node>();
    node->cls = cls.get();
    node->queue = &queue;
    auto& org = orgs_[key.org];
    if (!org) org = std::make_unique<Org>();
    org->id = key.org;
    ++org->nodes;
    node->org = org.get();
    queue.nodes.push_back(node.get());
  }
  ++node->lines;
  line->node = node.get();
  if (!key.limit_key.empty()) {
    Key& limit = KeyOf(shard, queue, key.limit_key, now);
    limit.lines.push_back(line);
    line->limit = &limit;
  }
  lines_.emplace(LineName{shard, line->name()}, std::move(owned));
  return *line;
}

// REQUIRES: not linked.
void LineIndex::Erase(Line& line) {
  MILLRACE_CHECK(!line.linked && line.buffered.count() == 0, "line '{}' is erased while it is in use", line.name());
  Node& node = *line.node;
  Queue& queue = *node.queue;
  --node.lines;
  --queue.lines;
  if (line.limit != nullptr) std::erase(line.limit->lines, &line);
  if (last_ == &line) last_ = nullptr;
  lines_.erase(lines_.find(LineName{line.shard, line.name()}));
  ++erased_;
  DropNodeIfIdle(node);
}

void LineIndex::DropNodeIfIdle(Node& node) {
  if (node.lines > 0) return;
  MILLRACE_CHECK(!node.linked, "a node without lines is linked in queue '{}'", node.queue->name);
  Class& cls = *node.cls;
  const OrgId org = node.org->id;
  std::erase(node.queue->nodes, &node);
  cls.nodes.erase(org);
  if (--orgs_.at(org)->nodes == 0) orgs_.erase(org);
  if (!cls.nodes.empty() || classes_.size() <= kIdleKeptMax) return;
  for (const auto& weak : views_)
    if (const auto view = weak.lock()) std::erase(view->served_, &cls);
  classes_.erase(ClassName(cls.name));
}

void LineIndex::DropQueueIfIdle(Queue& queue) {
  if (queues_.size() <= kIdleKeptMax || queue.lines > 0 || queue.used > 0 || !queue.keys.empty()) return;
  QueueSettings defaults;
  defaults.org = queue.org;
  defaults.queue = queue.name;
  if (queue.settings != defaults) return;
  SetWake(queue, std::nullopt);
  queue_of_.erase(QueueName{queue.org, queue.name});
  queues_.erase(std::pair{queue.org, std::string(queue.name)});
}

// A key that nobody uses is forgotten once its bucket is what a new one's would be.
void LineIndex::DropKeyIfIdle(Key& key, MonoTime now) {
  if (std::exchange(key.idles, false)) idles_.erase(key.idle);
  if (key.used > 0 || !key.lines.empty()) return;
  Queue& queue = *key.queue;
  if (queue.settings.key_rate.Limited()) {
    const MonoTime full = key.bucket.WhenFull(queue.settings.key_rate, now);
    if (full > now) {
      key.idles = true;
      key.idle = TimerAt{full, ++last_timer_};
      idles_.emplace(key.idle, &key);
      return;
    }
  }
  SetWake(key, std::nullopt);
  queue.keys.erase(std::string(key.name));
}

void LineIndex::DropShard(ShardId shard) {
  for (auto it = lines_.begin(); it != lines_.end();) {
    Line& line = *it->second;
    ++it;
    if (line.shard != shard) continue;
    total_ready_ -= line.ready;
    if (line.linked) Unlink(line);
    Erase(line);
  }
  ready_.erase(shard);
  owned_since_.erase(shard);
  for (auto it = queues_.begin(); it != queues_.end();) {
    Queue& queue = *it->second;
    if (queue.shard != shard) {
      ++it;
      continue;
    }
    SetWake(queue, std::nullopt);
    for (auto& [name, key] : queue.keys) {
      SetWake(*key, std::nullopt);
      if (key->idles) idles_.erase(key->idle);
    }
    queue_of_.erase(QueueName{queue.org, queue.name});
    it = queues_.erase(it);
  }
}

// ---- what may start --------------------------------------------------------------------------------------------------------

bool LineIndex::MayStart(Queue& queue, MonoTime now) {
  if (!queue.limited) return true;
  const QueueSettings& s = queue.settings;
  return !s.paused && Left(s.concurrency, queue.used) > 0 && (!s.rate.Limited() || queue.bucket.Tokens(s.rate, now) > 0);
}

bool LineIndex::MayStart(Key& key, MonoTime now) {
  if (!key.queue->limits_keys) return true;
  const QueueSettings& s = key.queue->settings;
  return Left(s.key_concurrency, key.used) > 0 && (!s.key_rate.Limited() || key.bucket.Tokens(s.key_rate, now) > 0);
}

template <class T>
void LineIndex::SetWake(T& sleeper, std::optional<MonoTime> at) {
  if (sleeper.wake && at && sleeper.wake->first == *at) return;
  if (sleeper.wake) wakes_.erase(*sleeper.wake);
  sleeper.wake.reset();
  if (!at) return;
  sleeper.wake = TimerAt{*at, ++last_timer_};
  wakes_.emplace(*sleeper.wake, &sleeper);
}

// A closed queue takes its nodes out of their classes, not its lines out of the nodes: it may have thousands.
bool LineIndex::Refresh(Queue& queue, MonoTime now) {
  const bool open = MayStart(queue, now);
  if (open && queue.open) return false;
  const QueueSettings& s = queue.settings;
  const bool thirsty = !open && !s.paused && s.rate.Limited() && queue.bucket.Tokens(s.rate, now) == 0;
  SetWake(queue, thirsty ? std::optional(queue.bucket.NextToken(s.rate, now)) : std::nullopt);
  if (open == queue.open) return false;
  queue.open = open;
  for (Node* node : queue.nodes) Place(*node);
  return open;
}

bool LineIndex::Refresh(Key& key, MonoTime now) {
  const bool open = MayStart(key, now);
  if (open && key.open) return false;
  const QueueSettings& s = key.queue->settings;
  const bool thirsty = !open && s.key_rate.Limited() && key.bucket.Tokens(s.key_rate, now) == 0;
  SetWake(key, thirsty ? std::optional(key.bucket.NextToken(s.key_rate, now)) : std::nullopt);
  if (open == key.open) return false;
  key.open = open;
  for (Line* line : key.lines) {
    if (open && !line->linked && line->ready > 0) Link(*line, now);
    if (!open && line->linked) Unlink(*line);
  }
  return open;
}

void LineIndex::Set(ShardId shard, const QueueSettings& settings, MonoTime now) {
  Queue& queue = QueueOf(shard, settings.org, settings.queue, now);
  queue.bucket.Change(queue.settings.rate, settings.rate, now);
  for (auto& [name, key] : queue.keys) key->bucket.Change(queue.settings.key_rate, settings.key_rate, now);
  const bool same_order = queue.settings.order == settings.order && queue.settings.aging == settings.aging;
  queue.Follow(settings);
  queue.pass.fill(queue.clock);
  for (auto it = queue.keys.begin(); it != queue.keys.end();) {
    Key& key = *it->second;
    ++it;
    Refresh(key, now);
    DropKeyIfIdle(key, now);
  }
  Refresh(queue, now);
  if (same_order) return;
  for (auto& [name, line] : lines_)
    if (line->node->queue == &queue && line->linked) Relink(*line, now);
}

std::uint64_t LineIndex::Allowance(const Line& line, MonoTime now) {
  Queue& queue = *line.node->queue;
  const QueueSettings& s = queue.settings;
  std::uint64_t n = line.ready;
  if (queue.limited) {
    n = std::min(n, s.paused ? 0 : Left(s.concurrency, queue.used));
    if (s.rate.Limited()) n = std::min(n, queue.bucket.Tokens(s.rate, now));
  }
  if (line.limit == nullptr || !queue.limits_keys) return n;
  n = std::min(n, Left(s.key_concurrency, line.limit->used));
  return s.key_rate.Limited() ? std::min(n, line.limit->bucket.Tokens(s.key_rate, now)) : n;
}

// ---- the order -----------------------------------------------------------------------------------------------------------

std::uint8_t LineIndex::LevelOf(const Line& line, MonoTime now) {
  const Queue& queue = *line.node->queue;
  if (queue.order == QueueOrder::kWeighted || now <= line.since) return line.priority;
  const auto up = (now - line.since) / queue.aging;
  return up >= line.priority ? 0 : static_cast<std::uint8_t>(line.priority - up);
}

void LineIndex::Link(Line& line, MonoTime now) {
  Node& node = *line.node;
  Queue& queue = *node.queue;
  line.linked = true;
  line.level = LevelOf(line, now);
  node.levels[line.level].PushBack(line);
  if (queue.linked[line.level]++ == 0) queue.pass[line.level] = std::max(queue.pass[line.level], queue.clock);
  if (queue.order == QueueOrder::kStrict && line.level > 0) {
    line.ages = line.since + queue.aging * (line.priority - line.level + 1);
    agings_[*line.ages].PushBack(line);
  }
  Place(node);
}

void LineIndex::Unlink(Line& line) {
  Node& node = *line.node;
  line.linked = false;
  node.levels[line.level].Erase(line);
  --node.queue->linked[line.level];
  if (line.ages) {
    const auto turn = agings_.find(*line.ages);
    turn->second.Erase(line);
    if (turn->second.empty()) agings_.erase(turn);
    line.ages.reset();
  }
  Place(node);
}

void LineIndex::Relink(Line& line, MonoTime now) {
  Unlink(line);
  Link(line, now);
}

bool LineIndex::UpToDate(const Node& node) {
  const Org::Level& org = node.org->at[node.level];
  return node.pass == org.pass && node.turn == org.turn;
}

// Puts the node where it belongs in its class, or takes it out.
void LineIndex::Place(Node& node) {
  const auto best = std::ranges::find_if(node.levels, [](const auto& lines) { return !lines.empty(); });
  const bool want = node.queue->open && best != node.levels.end();
  const auto level = static_cast<std::uint8_t>(best - node.levels.begin());
  if (!node.linked && !want) return;
  if (node.linked && want && node.level == level && UpToDate(node)) return;
  const bool stays = node.linked && want && node.level == level;
  auto& order = node.cls->order;
  decltype(order.extract(node.place)) kept;
  if (node.linked) {
    kept = order.extract(node.place);
    if (!stays) {
      node.linked = false;
      --linked_nodes_;
      if (--node.org->at[node.level].linked == 0) --orgs_at_[node.level];
    }
  }
  if (!want) return;
  Org::Level& org = node.org->at[level];
  if (!stays) {
    node.linked = true;
    node.level = level;
    ++linked_nodes_;
    if (org.linked++ == 0) {  // it comes back: no claim to turns of the time it had nothing for
      ++orgs_at_[level];
      org.pass = std::max(org.pass, clock_[level]);
    }
  }
  node.pass = org.pass;
  node.turn = org.turn;
  // Most had a turn and come last.
  node.place = kept.empty() ? order.insert(order.end(), &node) : order.insert(order.end(), std::move(kept));
}

LineIndex::Line* LineIndex::FrontOf(Node& node) {
  std::size_t level = node.level;
  if (node.queue->order == QueueOrder::kWeighted) {
    const auto& pass = node.queue->pass;
    for (std::size_t i = level + 1; i < node.levels.size(); ++i)
      if (!node.levels[i].empty() && pass[i] < pass[level]) level = i;
  }
  return &node.levels[level].Front();
}

std::shared_ptr<LineIndex::View> LineIndex::ViewOf(const WorkerReach& reach) {
  std::erase_if(views_, [](const auto& view) { return view.expired(); });
  for (const auto& weak : views_)
    if (auto view = weak.lock(); view && view->reach_ == reach) return view;
  auto view = std::make_shared<View>();
  view->reach_ = reach;
  for (const auto& [name, cls] : classes_) {
    LineKey key;
    std::tie(key.queue, key.kind, key.root) = name;
    if (reach.Serves(key)) view->served_.push_back(cls.get());
  }
  views_.push_back(view);
  return view;
}

LineIndex::Line* LineIndex::Next(const View& worker) {
  Node* best = nullptr;
  const auto before = [](const Node& a, const Node& b) {
    const Org::Level& x = a.org->at[a.level];
    const Org::Level& y = b.org->at[b.level];
    return std::tie(a.level, x.pass, x.turn, a.org->id, a.queue->turn, a.served) <
           std::tie(b.level, y.pass, y.turn, b.org->id, b.queue->turn, b.served);
  };
  for (Class* cls : worker.served_) {
    // The org may have had turns elsewhere since its node was put here.
    while (!cls->order.empty()) {
      Node& top = **cls->order.begin();
      if (UpToDate(top)) break;
      Place(top);
    }
    if (cls->order.empty()) continue;
    Node* top = *cls->order.begin();
    if (best == nullptr || before(*top, *best)) best = top;
  }
  return best == nullptr ? nullptr : FrontOf(*best);
}

std::size_t LineIndex::OrgsBeside(const Line& line) const { return orgs_at_[line.node->level]; }

// ---- what happens ----------------------------------------------------------------------------------------------------------

void LineIndex::Add(ShardId shard, const std::string& name, std::uint64_t n, MonoTime now) {
  if (n == 0) return;
  if (Line* line = Find(shard, name)) return Add(*line, n, now);
  if (auto key = LineKey::Parse(name)) Add(NewLine(shard, NameLine(std::move(*key)), now), n, now);
}

LineIndex::Line& LineIndex::Add(ShardId shard, const LineRef& named, std::uint64_t n, MonoTime now) {
  Line& line = NewLine(shard, named, now);
  Add(line, n, now);
  return line;
}

void LineIndex::Add(Line& line, std::uint64_t n, MonoTime now) {
  const bool was_empty = line.ready == 0;
  Queue& queue = *line.node->queue;
  line.ready += n;
  queue.ready += n;
  total_ready_ += n;
  ready_[line.shard] += n;
  if (was_empty) line.since = now;
  if (!line.linked && (line.limit == nullptr || !queue.limits_keys || line.limit->open)) Link(line, now);
}

// `n` jobs count as running no more; with `tokens`, they never ran.
void LineIndex::Free(const LineKey& key, std::uint64_t n, bool tokens, MonoTime now) {
  Queue* queue = n == 0 ? nullptr : FindQueue(key.org, key.queue);
  if (queue == nullptr) return;
  const auto limit = queue->keys.find(key.limit_key);
  Free(*queue, limit == queue->keys.end() ? nullptr : limit->second.get(), n, tokens, now);
}

void LineIndex::Free(Queue& queue, Key* limit, std::uint64_t n, bool tokens, MonoTime now) {
  MILLRACE_CHECK(n <= queue.used, "queue '{}': {} end of {}", queue.name, n, queue.used);
  const QueueSettings& s = queue.settings;
  queue.used -= n;
  if (tokens && s.rate.Limited()) queue.bucket.GiveBack(s.rate, n, now);
  if (limit != nullptr) {
    MILLRACE_CHECK(n <= limit->used, "limit key '{}': {} end of {}", limit->name, n, limit->used);
    limit->used -= n;
    if (tokens && s.key_rate.Limited()) limit->bucket.GiveBack(s.key_rate, n, now);
    Refresh(*limit, now);
    DropKeyIfIdle(*limit, now);
  }
  Refresh(queue, now);
  DropQueueIfIdle(queue);
}

void LineIndex::Forget(ShardId shard, const std::string& name, std::uint64_t n, MonoTime now) {
  Line* line = Find(shard, name);
  if (line == nullptr) return;
  if (const std::uint64_t gone = std::min(n, line->ready); gone > 0) Remove(*line, gone, now);
}

void LineIndex::Take(Line& line, std::uint64_t n, MonoTime now) {
  MILLRACE_CHECK(n > 0 && n <= Allowance(line, now), "line '{}': {} taken of {}", line.name(), n, line.ready);
  MILLRACE_CHECK(line.linked && line.node->linked, "line '{}': taken while it may not start", line.name());
  Node& node = *line.node;
  Queue& queue = *node.queue;
  Org::Level& org = node.org->at[node.level];
  clock_[node.level] = std::max(clock_[node.level], org.pass);
  org.pass += n;
  org.turn = queue.turn = node.served = ++last_turn_;
  if (queue.order == QueueOrder::kWeighted) {
    queue.clock = std::max(queue.clock, queue.pass[line.level]);
    queue.pass[line.level] += n * StrideOf(queue.settings, line.level);
  }
  line.since = now;
  queue.used += n;
  if (queue.limited && queue.settings.rate.Limited()) queue.bucket.Take(queue.settings.rate, n, now);
  if (line.limit != nullptr) {
    line.limit->used += n;
    if (queue.limits_keys && queue.settings.key_rate.Limited()) line.limit->bucket.Take(queue.settings.key_rate, n, now);
  }
  if (line.ready > n) Relink(line, now);  // to the end of its round, at the level that it has by itself
  Key* key = line.limit;
  Remove(line, n, now);
  if (key != nullptr) Refresh(*key, now);
  Refresh(queue, now);
}

void LineIndex::Remove(Line& line, std::uint64_t n, MonoTime now) {
  MILLRACE_CHECK(n <= line.ready, "line '{}': {} removed of {}", line.name(), n, line.ready);
  Queue& queue = *line.node->queue;
  line.ready -= n;
  queue.ready -= n;
  total_ready_ -= n;
  ready_[line.shard] -= n;
  if (line.ready > 0) return;
  line.unserved.reset();
  if (line.linked) Unlink(line);
  if (line.buffered.count() > 0) return;
  if (lines_.size() <= kIdleLinesMax && classes_.size() <= kIdleKeptMax && queues_.size() <= kIdleKeptMax) return;
  Key* key = line.limit;
  Erase(line);
  if (key != nullptr) DropKeyIfIdle(*key, now);
}

void LineIndex::GiveBack(const LineKey& key, std::uint64_t n, MonoTime now) { Free(key, n, true, now); }

void LineIndex::Running(ShardId shard, const LineKey& key, MonoTime now) {
  Queue& queue = QueueOf(shard, key.org, key.queue, now);
  ++queue.used;
  if (!key.limit_key.empty()) {
    Key& limit = KeyOf(shard, queue, key.limit_key, now);
    ++limit.used;
    Refresh(limit, now);
  }
  Refresh(queue, now);
}

void LineIndex::Ended(const LineKey& key, MonoTime now) { Free(key, 1, false, now); }

void LineIndex::Ended(const Slot& slot, MonoTime now) { Free(*slot.queue_, slot.key_, 1, false, now); }

LineIndex::Slot LineIndex::SlotOf(const Line& line) {
  Slot slot;
  slot.queue_ = line.node->queue;
  slot.key_ = line.limit;
  return slot;
}

bool LineIndex::Advance(MonoTime now) {
  bool opened = false;
  while (!wakes_.empty() && wakes_.begin()->first.first <= now) {
    const Waker waker = wakes_.begin()->second;
    opened = std::visit([&](auto* sleeper) { return Refresh(*sleeper, now); }, waker) || opened;
  }
  while (!agings_.empty() && agings_.begin()->first <= now) Relink(agings_.begin()->second.Front(), now);
  while (!idles_.empty() && idles_.begin()->first.first <= now) {
    Queue& queue = *idles_.begin()->second->queue;
    DropKeyIfIdle(*idles_.begin()->second, now);
    DropQueueIfIdle(queue);
  }
  return opened;
}

std::optional<MonoTime> LineIndex::NextToken() const {
  return wakes_.empty() ? std::nullopt : std::optional(wakes_.begin()->first.first);
}

// ---- for people -----------------------------------------------------------------------------------------------------------

std::uint64_t LineIndex::Ready(ShardId shard) const {
  const auto it = ready_.find(shard);
  return it == ready_.end() ? 0 : it->second;
}

std::uint64_t LineIndex::Ready(ShardId shard, const std::string& line) const {
  const Line* found = Find(shard, line);
  return found == nullptr ? 0 : found->ready;
}

std::map<std::string, LineIndex::Counts> LineIndex::CountsOf(OrgId org) const {
  std::map<std::string, Counts> all;
  for (auto it = queues_.lower_bound(std::pair{org, std::string()}); it != queues_.end() && it->first.first == org; ++it)
    all[it->first.second] = {.ready = it->second->ready, .running = it->second->used};
  return all;
}

LineIndex::Counts LineIndex::CountsOf(OrgId org, const std::string& queue) const {
  const Queue* found = FindQueue(org, queue);
  return found == nullptr ? Counts{} : Counts{.ready = found->ready, .running = found->used};
}

std::uint64_t LineIndex::RunningOfKey(OrgId org, const std::string& queue, const std::string& limit_key) const {
  const Queue* found = FindQueue(org, queue);
  if (found == nullptr) return 0;
  const auto it = found->keys.find(limit_key);
  return it == found->keys.end() ? 0 : it->second->used;
}

}  // namespace millrace
