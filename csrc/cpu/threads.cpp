// Threads of _cpu: tasks handed out by a counter to threads that live for one call.
#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace koopcore::cpu {

namespace {

// A thread is worth starting for this much work; starting and joining one took 20 to 40 µs.
constexpr double kNanosecondsPerThread = 80e3;
constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kLargestIdleScratch = 1 << 20; // bytes a thread has between calls, at most

std::atomic<int> requested_count{0};

int allowed_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : int(count);
}

struct Free {
  void operator()(void *p) const { std::free(p); }
};

// Scratch of the calling thread, which stays for the next call unless it is large.
class Scratch {
public:
  double *get(std::size_t doubles) {
    const std::size_t bytes = (doubles * sizeof(double) + kCacheLine) / kCacheLine * kCacheLine;
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(std::aligned_alloc(kCacheLine, bytes));
      if (memory_ == nullptr)
        throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<double *>(memory_.get());
  }
  void trim() {
    if (size_ > kLargestIdleScratch) {
      memory_.reset();
      size_ = 0;
    }
  }

private:
  std::unique_ptr<void, Free> memory_;
  std::size_t size_ = 0;
};

} // namespace

int thread_count() {
  const int requested = requested_count.load(std::memory_order_relaxed);
  if (requested > 0)
    return requested;
  const char *text = std::getenv("KOOPCORE_NUM_THREADS");
  if (text == nullptr || *text == '\0')
    return allowed_processors();
  char *end = nullptr;
  errno = 0;
  const long count = std::strtol(text, &end, 10);
  if (errno != 0 || *end != '\0' || count < 1 || count > 4096)
    throw std::invalid_argument("KOOPCORE_NUM_THREADS is '" + std::string(text) +
                                "'; give a number of threads from 1 to 4096, or unset it");
  return int(count);
}

void set_thread_count(int count) {
  if (count < 0 || count > 4096)
    throw std::invalid_argument("the number of threads is " + std::to_string(count) +
                                "; give 1 to 4096, or 0 for the environment's choice");
  requested_count.store(count, std::memory_order_relaxed);
}

void run_tasks(std::int64_t tasks, double nanoseconds, std::size_t scratch_size, void *context,
               TaskBody body) {
  thread_local Scratch local;
  double *scratch = local.get(scratch_size);
  std::int64_t threads = 1;
  if (tasks > 1 && nanoseconds > 2 * kNanosecondsPerThread) {
    threads = std::int64_t(nanoseconds / kNanosecondsPerThread);
    threads = std::min<std::int64_t>({threads, tasks, thread_count()});
  }
  if (threads <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task)
      body(context, task, scratch);
    local.trim();
    return;
  }
  // Scratch of all threads is allocated here, where running out of memory can be reported.
  std::vector<Scratch> others(threads - 1);
  std::vector<double *> memory;
  for (Scratch &other : others)
    memory.push_back(other.get(scratch_size));
  std::atomic<std::int64_t> next{0};
  auto work = [&](double *mine) {
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      body(context, task, mine);
  };
  std::vector<std::thread> started;
  started.reserve(others.size());
  try {
    for (double *mine : memory)
      started.emplace_back(work, mine);
  } catch (const std::system_error &) {
    // The system gives no more threads: the ones there are do the work.
  }
  work(scratch);
  for (std::thread &thread : started)
    thread.join();
  local.trim();
}

} // namespace koopcore::cpu
