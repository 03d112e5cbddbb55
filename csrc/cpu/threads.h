// Threads of _cpu: tasks handed out by a counter to threads that live for one call.
//
// There is no pool: starting a thread costs some ten microseconds, which only calls of a
// millisecond and more pay, and no pool means nothing to survive a fork or to shut down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace koopcore::cpu {

// What set_thread_count said; else KOOPCORE_NUM_THREADS; else the processors this process may use.
// Throws std::invalid_argument when KOOPCORE_NUM_THREADS is not a positive number.
int thread_count();
// 0 returns to the environment's choice; throws std::invalid_argument for a negative count.
void set_thread_count(int count);

// Memory aligned to a cache line, whose numbers are any; up to 32 MB of what is given back waits
// for the next who wants it. Throws std::bad_alloc.
class Scratch {
public:
  explicit Scratch(std::size_t doubles);
  ~Scratch();
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  double *get() const { return static_cast<double *>(memory_); }

private:
  std::size_t bytes_;
  void *memory_;
};

using TaskBody = void (*)(void *context, std::int64_t task, double *scratch);

// Runs body(context, task, scratch) for every task below `tasks`, each once, in any order, with
// `scratch_size` doubles of cache-aligned scratch per thread. `nanoseconds` is an estimate of the
// whole work: threads are started only as far as it pays. Throws std::bad_alloc before any work.
void run_tasks(std::int64_t tasks, double nanoseconds, std::size_t scratch_size, void *context,
               TaskBody body);

template <class Body>
void for_each_task(std::int64_t tasks, double nanoseconds, std::size_t scratch_size, Body &&body) {
  run_tasks(tasks, nanoseconds, scratch_size, &body,
            [](void *context, std::int64_t task, double *scratch) {
              (*static_cast<std::remove_reference_t<Body> *>(context))(task, scratch);
            });
}

} // namespace koopcore::cpu
