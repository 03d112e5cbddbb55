// Threads of _cpu: tasks handed out by a counter to threads that live for one call.
#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

namespace koopcore::cpu {

namespace {

// A thread is worth starting for this much work; starting and joining one took 20 to 40 µs.
constexpr double kNanosecondsPerThread = 80e3;
constexpr std::size_t kCacheLine = 64, kLargePage = std::size_t(2) << 20;

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

// Memory between calls: the first touch of a page costs as much as much of the work on it. Taken
// and given by whoever gets the lock at once, so that nobody waits, nor does a child of a fork for
// a thread that it does not have.
class IdleMemory {
public:
  // A block of at least `bytes`, whose size `bytes` then is; null where there is none.
  static void *take(std::size_t &bytes) {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (!lock.owns_lock())
      return nullptr;
    int best = count;
    for (int i = 0; i < count; ++i)
      if (blocks[i].bytes >= bytes && (best == count || blocks[i].bytes < blocks[best].bytes))
        best = i;
    if (best == count)
      return nullptr;
    const Block block = blocks[best];
    remove(best);
    bytes = block.bytes;
    return block.memory;
  }

  // Blocks that have been idle longest make room.
  static void give(void *memory, std::size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (!lock.owns_lock() || bytes > kMostIdle) {
      std::free(memory);
      return;
    }
    while (count == kMostBlocks || idle + bytes > kMostIdle) {
      std::free(blocks[0].memory);
      remove(0);
    }
    blocks[count++] = {memory, bytes};
    idle += bytes;
  }

private:
  struct Block {
    void *memory;
    std::size_t bytes;
  };

  static void remove(int which) {
    idle -= blocks[which].bytes;
    std::copy(blocks + which + 1, blocks + count, blocks + which);
    --count;
  }

  static constexpr int kMostBlocks = 64;
  static constexpr std::size_t kMostIdle = std::size_t(32) << 20;
  static inline std::mutex mutex;
  static inline Block blocks[kMostBlocks]; // oldest first
  static inline int count = 0;
  static inline std::size_t idle = 0; // bytes
};

} // namespace

Scratch::Scratch(std::size_t doubles)
    : bytes_((doubles * sizeof(double) + kCacheLine) / kCacheLine * kCacheLine) {
  memory_ = IdleMemory::take(bytes_);
  if (memory_ != nullptr)
    return;
  const bool large = bytes_ >= 2 * kLargePage;
  if (large)
    bytes_ = (bytes_ + kLargePage - 1) / kLargePage * kLargePage;
  memory_ = std::aligned_alloc(large ? kLargePage : kCacheLine, bytes_);
  if (memory_ == nullptr)
    throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (large) // touched for the first time, a small page costs more than what is done with it
    madvise(memory_, bytes_, MADV_HUGEPAGE);
#endif
}

Scratch::~Scratch() { IdleMemory::give(memory_, bytes_); }

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
  const Scratch scratch(scratch_size);
  std::int64_t threads = 1;
  if (tasks > 1 && nanoseconds > 2 * kNanosecondsPerThread) {
    threads = std::int64_t(nanoseconds / kNanosecondsPerThread);
    threads = std::min<std::int64_t>({threads, tasks, thread_count()});
  }
  if (threads <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task)
      body(context, task, scratch.get());
    return;
  }
  // Scratch of all threads is allocated here, where running out of memory can be reported.
  std::vector<std::unique_ptr<Scratch>> others;
  for (std::int64_t other = 1; other < threads; ++other)
    others.push_back(std::make_unique<Scratch>(scratch_size));
  std::atomic<std::int64_t> next{0};
  auto work = [&](double *mine) {
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      body(context, task, mine);
  };
  std::vector<std::thread> started;
  started.reserve(others.size());
  try {
    for (const auto &other : others)
      started.emplace_back(work, other->get());
  } catch (const std::system_error &) {
    // The system gives no more threads: the ones there are do the work.
  }
  work(scratch.get());
  for (std::thread &thread : started)
    thread.join();
}

} // namespace koopcore::cpu
