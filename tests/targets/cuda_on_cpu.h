// CUDA kernels on a CPU, slowly: the threads of a block are fibers that take turns at __syncthreads and at shuffles.
// A barrier that not all threads reach, and threads that wait for ever, end the process.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static int2 make_int2(int x, int y) { return {x, y}; }
static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
template <class T> static T max(T a, T b) { return a > b ? a : b; }
template <class T> static T min(T a, T b) { return a < b ? a : b; }

static dim3 threadIdx, blockIdx;

namespace fibers {
enum State { kReady, kBlock, kWarp, kDone };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  double slot;
};
static std::vector<Fiber> all;
static ucontext_t scheduler;
static size_t current;
static bool backwards;  // the last thread first
static const std::function<void()>* body;

static void Enter() {
  (*body)();
  all[current].state = kDone;
  swapcontext(&all[current].context, &scheduler);
}

static void Wait(State state) {
  size_t self = current;
  all[self].state = state;
  swapcontext(&all[self].context, &scheduler);
}

// Lets those go on of whom all are waiting for the same; threads that have ended are not waited for.
static bool Release(size_t begin, size_t end, State state) {
  bool any = false;
  for (size_t i = begin; i < end; ++i) {
    if (all[i].state != state && all[i].state != kDone) return false;
    any = any || all[i].state == state;
  }
  for (size_t i = begin; i < end; ++i)
    if (all[i].state == state) all[i].state = kReady;
  return any;
}

static void Block(dim3 threads) {
  size_t count = threads.x * threads.y * threads.z;
  all.resize(count);
  for (Fiber& f : all) {
    f.stack.resize(1 << 16);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    makecontext(&f.context, Enter, 0);
    f.state = kReady;
  }
  for (bool running = true; running;) {
    bool ran = false;
    running = false;
    for (size_t turn = 0; turn < count; ++turn) {
      current = backwards ? count - 1 - turn : turn;
      if (all[current].state == kReady) {
        threadIdx = {unsigned(current % threads.x), unsigned(current / threads.x % threads.y),
                     unsigned(current / threads.x / threads.y)};
        swapcontext(&scheduler, &all[current].context);
        ran = true;
      }
      running = running || all[current].state != kDone;
    }
    bool released = Release(0, count, kBlock);
    for (size_t w = 0; w < count; w += 32) released = Release(w, w + 32 < count ? w + 32 : count, kWarp) || released;
    if (running && !ran && !released) fprintf(stderr, "threads wait for each other for ever\n"), abort();
  }
}

static void Launch(dim3 blocks, dim3 threads, const std::function<void()>& kernel) {
  body = &kernel;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) blockIdx = {x, y, z}, Block(threads);
}
}  // namespace fibers

static void __syncthreads() { fibers::Wait(fibers::kBlock); }
static unsigned __activemask() { return ~0u; }

template <class T> static T Shuffled(T value, int lane, int from, int width) {
  size_t self = fibers::current;
  fibers::all[self].slot = value;
  fibers::Wait(fibers::kWarp);
  bool inside = from >= 0 && from / width == lane / width && self - lane + from < fibers::all.size();
  T got = inside ? T(fibers::all[self - lane + from].slot) : value;
  fibers::Wait(fibers::kWarp);
  return got;
}
template <class T> static T __shfl_down_sync(unsigned, T value, int delta, int width = 32) {
  int lane = fibers::current % 32;
  return Shuffled(value, lane, lane + delta, width);
}
template <class T> static T __shfl_sync(unsigned, T value, int from, int width = 32) {
  int lane = fibers::current % 32;
  return Shuffled(value, lane, lane / width * width + from, width);
}
