// CUDA for one processor: what kernels.cu needs of it, with a thread for each CUDA thread of a block, block after block.
//
// emulated_kernels.py puts the kernels at the end, with conversions of numbers in place of PTX instructions.
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __shared__
using std::max;
using std::min;

struct Three {
  int x, y;
};
thread_local Three threadIdx, blockIdx, blockDim, gridDim;
float shared[48 * 1024 / sizeof(float)];  // more is refused by a GPU

static pthread_barrier_t block_barrier;
static std::vector<pthread_barrier_t> warp_barriers;
static float exchanged[1024];

static void __syncthreads() { pthread_barrier_wait(&block_barrier); }

static float __shfl_xor_sync(unsigned, float value, int mask) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  pthread_barrier_t* warp = &warp_barriers[thread / 32];
  exchanged[thread] = value;
  pthread_barrier_wait(warp);
  const float other = exchanged[thread ^ mask];
  pthread_barrier_wait(warp);
  return other;
}

#define __expf std::exp
static float rsqrtf(float x) { return 1.f / std::sqrt(x); }
static float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
static float wide_of_half(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof x);
  return (float)x;
}
static unsigned short half_of(float x) {
  const _Float16 rounded = (_Float16)x;
  unsigned short bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}
static unsigned short bfloat_of(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to the nearest, ties to even
}

static void launch(Three grid, Three block, const std::function<void()>& kernel) {
  const int threads = block.x * block.y;
  pthread_barrier_init(&block_barrier, nullptr, threads);
  warp_barriers.resize((threads + 31) / 32);
  for (size_t warp = 0; warp < warp_barriers.size(); warp++)
    pthread_barrier_init(&warp_barriers[warp], nullptr, min(32, threads - 32 * (int)warp));
  for (int y = 0; y < grid.y; y++)
    for (int x = 0; x < grid.x; x++) {
      std::fill(shared, shared + sizeof shared / sizeof *shared, NAN);
      std::vector<std::thread> running;
      for (int thread = 0; thread < threads; thread++)
        running.emplace_back([=, &kernel] {
          threadIdx = {thread % block.x, thread / block.x};
          blockIdx = {x, y}, blockDim = block, gridDim = grid;
          kernel();
        });
      for (auto& thread : running) thread.join();
    }
}
