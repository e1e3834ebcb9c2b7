// gearmand: background jobs, 100 tasks a round trip, four worker connections in four threads.
#include <libgearman/gearman.h>

#include <cstring>
#include <thread>

#include "common.hpp"

static Handler* handler = nullptr;

static void* Noop(gearman_job_st* job, void*, size_t* size, gearman_return_t* result) {
  const std::string text(static_cast<const char*>(gearman_job_workload(job)), gearman_job_workload_size(job));
  if (handler->Handle(text.c_str()))
    std::thread([] {
      usleep(500'000);  // repetitions that come late are still counted
      handler->Report();
      _exit(0);
    }).detach();
  *size = 0;
  *result = GEARMAN_SUCCESS;
  return nullptr;
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const long long jobs = atoll(argv[2]);
  const int gap = argc > 3 ? atoi(argv[3]) : 0;
  const auto port = static_cast<in_port_t>(atoi(getenv("GEARMAN_PORT")));
  if (strcmp(argv[1], "produce") == 0) {
    gearman_client_st* client = gearman_client_create(nullptr);
    gearman_client_add_server(client, "127.0.0.1", port);
    gearman_client_add_options(client, GEARMAN_CLIENT_FREE_TASKS);
    Produce(jobs, gap, 100, [&](const std::vector<std::string>& list) {
      gearman_return_t result;
      for (const auto& p : list)
        gearman_client_add_task_background(client, nullptr, nullptr, "noop", nullptr, p.data(), p.size(), &result);
      if (gearman_failed(gearman_client_run_tasks(client))) fprintf(stderr, "%s\n", gearman_client_error(client)), exit(1);
    });
    return 0;
  }
  Handler all(jobs);
  handler = &all;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      gearman_worker_st* worker = gearman_worker_create(nullptr);
      gearman_worker_add_server(worker, "127.0.0.1", port);
      gearman_worker_add_function(worker, "noop", 0, Noop, nullptr);
      while (true) gearman_worker_work(worker);
    });
  usleep(200'000);
  printf("READY\n");
  fflush(stdout);
  for (auto& thread : threads) thread.join();
}
