// Steps of compiled graphs: step_loop.py describes them. Torch's functions are passed as addresses.
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

namespace {

using Handle = void*;
using NewHandle = int (*)(Handle, Handle*);
using Delete = int (*)(Handle);
using Data = int (*)(Handle, void**);
using Entry = void (*)(Handle*, Handle*);

struct Call {
  int64_t phase, thread, entry, inputs, num_inputs, num_outputs, result, bytes, stride;
};

struct Copy {
  int64_t thread, source, offset, target, count, distance, bytes;
};

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void wait() {
    if (count_ == 1) return;
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
      waiting_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 2000) {
        pause_briefly();
      } else {
        sched_yield();
      }
    }
  }

 private:
  const int count_;
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};

}  // namespace

extern "C" int take_steps(NewHandle new_handle, Delete delete_handle, Data data_of,
                          int64_t threads, int64_t steps, int64_t phases, const Call* calls,
                          int64_t num_calls, const Copy* copies, int64_t num_copies,
                          char* const* sources, int64_t num_sources, char* message) {
  std::atomic<bool> failed{false};

  const auto run = [&](const Call& call, int64_t step) {
    std::vector<Handle> inputs(call.num_inputs), outputs(call.num_outputs + 1, nullptr);
    const auto* handles = reinterpret_cast<const Handle*>(call.inputs);
    for (int64_t i = 0; i < call.num_inputs; ++i) new_handle(handles[i], &inputs[i]);
    reinterpret_cast<Entry>(call.entry)(inputs.data(), outputs.data());
    if (call.result != 0) {
      void* data = nullptr;
      data_of(outputs[0], &data);
      std::memcpy(reinterpret_cast<char*>(call.result) + step * call.stride, data, call.bytes);
    }
    for (int64_t i = 0; i < call.num_outputs; ++i) delete_handle(outputs[i]);
  };

  const auto copy = [&](const Copy& part, int64_t step) {
    const char* source = sources[step * num_sources + part.source] + part.offset;
    char* target = reinterpret_cast<char*>(part.target);
    for (int64_t i = 0; i < part.count; ++i) {
      std::memcpy(target + i * part.bytes, source + i * part.distance, part.bytes);
    }
  };

  Barrier* barrier = nullptr;
#pragma omp parallel num_threads(threads)
  {
    const int team = omp_get_num_threads(), own = omp_get_thread_num();
#pragma omp single
    barrier = new Barrier(team);
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t i = 0; i < num_copies; ++i) {
        if (copies[i].thread % team == own) copy(copies[i], step);
      }
      for (int64_t phase = 0; phase < phases; ++phase) {
        for (int64_t i = 0; i < num_calls; ++i) {
          if (calls[i].phase != phase || calls[i].thread % team != own) continue;
          if (failed.load(std::memory_order_relaxed)) continue;
          try {
            run(calls[i], step);
          } catch (const std::exception& error) {
            if (!failed.exchange(true)) std::strncpy(message, error.what(), 511);
          } catch (...) {
            if (!failed.exchange(true)) std::strncpy(message, "a compiled graph failed", 511);
          }
        }
        barrier->wait();
      }
    }
  }
  delete barrier;
  return failed.load() ? 1 : 0;
}
