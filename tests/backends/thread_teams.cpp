// Teams of csrc/cpu/threads.cpp at work, for ThreadSanitizer: several callers, each with a team.
#include "cpu/threads.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

using namespace koopcore::cpu;

namespace {

constexpr std::int64_t kTasks = 500;
constexpr double kLong = 1e9; // an estimate that starts every thread there is

// Tasks write their own entry from their thread's scratch; the caller reads all of them after.
bool entries_are_right(int seed) {
  std::vector<double> out(kTasks, -1.0);
  for_each_task(kTasks, kLong, 1000, [&](std::int64_t task, double *scratch) {
    for (int i = 0; i < 1000; ++i)
      scratch[i] = double(seed + task);
    double sum = 0.0;
    for (int i = 0; i < 1000; ++i)
      sum += scratch[i];
    out[task] = sum;
  });
  for (std::int64_t task = 0; task < kTasks; ++task)
    if (out[task] != 1000.0 * double(seed + task))
      return false;
  return true;
}

} // namespace

// Any argument: a task without its own place, which the sanitizer has to report.
int main(int count, char **) {
  set_thread_count(4);
  if (count > 1) {
    long shared = 0;
    for_each_task(40, kLong, 1, [&](std::int64_t, double *) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2)); // so that all threads get some
      ++shared;
    });
    std::printf("%ld\n", shared);
    return 0;
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int seed = 0; seed < 3; ++seed)
    callers.emplace_back([&wrong, seed] {
      for (int round = 0; round < 20; ++round)
        wrong += !entries_are_right(1000 * seed + round);
    });
  for (int i = 0; i < 50; ++i) // the number of threads may change while teams work
    set_thread_count(1 + i % 4);
  for (std::thread &caller : callers)
    caller.join();
  std::printf("%d wrong\n", wrong.load());
  return wrong.load();
}
