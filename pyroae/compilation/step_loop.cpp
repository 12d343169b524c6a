// Steps of compiled graphs: step_loop.py describes them. Torch's functions are passed as addresses.
#include <omp.h>

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
using Kernel = void (*)(const void*);
using Sums = void (*)(const void*, const float*, float*);

constexpr int64_t ALL = -1;     // the thread of a call that uses all cores
constexpr int64_t KERNEL = -1;  // the number of inputs of a kernel, whose input is a structure

struct Call {
  int64_t phase, thread, entry, inputs, num_inputs, num_outputs, result, bytes, stride, sums, terms;
};

struct Copy {
  int64_t thread, source, offset, target, count, distance, bytes;
};

}  // namespace

extern "C" int take_steps(NewHandle new_handle, Delete delete_handle, Data data_of,
                          int64_t threads, int64_t steps, int64_t phases, const Call* calls,
                          int64_t num_calls, const Copy* copies, int64_t num_copies,
                          char* const* sources, int64_t num_sources, char* message) {
  std::atomic<bool> failed{false};

  const auto run = [&](const Call& call, int64_t step) {
    if (call.num_inputs == KERNEL) {
      reinterpret_cast<Kernel>(call.entry)(reinterpret_cast<const void*>(call.inputs));
      return;
    }
    std::vector<Handle> inputs(call.num_inputs), outputs(call.num_outputs + 1, nullptr);
    const auto* handles = reinterpret_cast<const Handle*>(call.inputs);
    for (int64_t i = 0; i < call.num_inputs; ++i) new_handle(handles[i], &inputs[i]);
    reinterpret_cast<Entry>(call.entry)(inputs.data(), outputs.data());
    if (call.result != 0) {
      void* data = nullptr;
      data_of(outputs[0], &data);
      char* result = reinterpret_cast<char*>(call.result) + step * call.stride;
      std::memcpy(result, data, call.bytes);
      if (call.sums != 0) {
        data_of(outputs[1], &data);
        reinterpret_cast<Sums>(call.sums)(reinterpret_cast<const void*>(call.terms),
                                          static_cast<const float*>(data),
                                          reinterpret_cast<float*>(result));
      }
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

  const auto turn = [&](int64_t step, int64_t phase, int64_t own, int64_t team) {
    for (int64_t i = 0; phase == 0 && i < num_copies; ++i) {
      if (copies[i].thread % team == own) copy(copies[i], step);
    }
    for (int64_t i = 0; i < num_calls; ++i) {
      if (calls[i].phase != phase || failed.load(std::memory_order_relaxed)) continue;
      if (calls[i].thread != ALL && calls[i].thread % team != own) continue;
      try {
        run(calls[i], step);
      } catch (const std::exception& error) {
        if (!failed.exchange(true)) std::strncpy(message, error.what(), 511);
      } catch (...) {
        if (!failed.exchange(true)) std::strncpy(message, "a compiled graph failed", 511);
      }
    }
  };

  std::vector<bool> is_divided(phases, true);
  for (int64_t i = 0; i < num_calls; ++i) {
    if (calls[i].thread == ALL) is_divided[calls[i].phase] = false;
  }
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t phase = 0; phase < phases; ++phase) {
      if (threads == 1 || !is_divided[phase]) {
        turn(step, phase, 0, 1);
        continue;
      }
#pragma omp parallel num_threads(threads)
      {
        // A convolution of oneDNN that is made for several threads waits for ever in one of a team.
        omp_set_num_threads(1);  // for this thread, until the end of the region
        turn(step, phase, omp_get_thread_num(), omp_get_num_threads());
      }
    }
  }
  return failed.load() ? 1 : 0;
}
