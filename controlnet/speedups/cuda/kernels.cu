// Kernels for half-precision tensors whose channels are last. They compute in float32 and round once.
//
// kernels.py compiles them with NVRTC, which needs no headers and no compiler in the image. So numbers are converted by
// PTX instructions. BF16 is defined for bfloat16. Sums are always added in the same order: equal inputs give equal bits.

typedef unsigned short half_t;
typedef long long i64;

struct __align__(16) Eight {
  half_t of[8];
};

#ifdef BF16
__device__ __forceinline__ float wide(half_t x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ half_t narrow(float x) {
  half_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#else
__device__ __forceinline__ float wide(half_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ __forceinline__ half_t narrow(float x) {
  half_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

__device__ __forceinline__ Eight load(const half_t* from) { return *(const Eight*)from; }
__device__ __forceinline__ void store(half_t* to, Eight eight) { *(Eight*)to = eight; }

// The first number of a group in a picture. Sums are those of the differences from it: the variance of numbers far
// from 0 would be lost in sums of their squares.
__device__ __forceinline__ float first_of(const half_t* x, const half_t* added, i64 n, int group, int P, int C,
                                          int width) {
  const int c = group * width;
  return wide(x[n * P * C + c]) + (added ? wide(added[n * C + c]) : 0.f);
}

// Group normalisation, first part: sums and sums of squares of `rows` pixels, for each group.
//
// x is (N, P, C); added, which counts as added to every pixel, is (N, C) or null; sums gets (N, gridDim.x, G, 2).
// A block has (C / 8, any) threads. Shared memory: 2 * blockDim.y * C floats.
extern "C" __global__ void group_sums(const half_t* x, const half_t* added, float* sums, int P, int C, int G, int rows) {
  extern __shared__ float shared[];
  const int c = threadIdx.x * 8, row = threadIdx.y, height = blockDim.y, n = blockIdx.y;
  const int thread = row * blockDim.x + threadIdx.x, threads = blockDim.x * height, width = C / G;
  const int first = blockIdx.x * rows, end = min(P, first + rows);
  float sum[8], squares[8], plus[8];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    sum[k] = squares[k] = 0.f;
    plus[k] = (added ? wide(added[n * C + c + k]) : 0.f) - first_of(x, added, n, (c + k) / width, P, C, width);
  }
#pragma unroll 4
  for (int p = first + row; p < end; p += height) {
    const Eight eight = load(x + ((i64)n * P + p) * C + c);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      const float value = wide(eight.of[k]) + plus[k];
      sum[k] += value;
      squares[k] += value * value;
    }
  }
  float* all_squares = shared + height * C;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    shared[row * C + c + k] = sum[k];
    all_squares[row * C + c + k] = squares[k];
  }
  __syncthreads();
  for (int i = thread; i < 2 * C; i += threads) {  // first over the rows
    float* column = i < C ? shared + i : all_squares + i - C;
    float total = 0.f;
    for (int r = 0; r < height; r++) total += column[r * C];
    column[0] = total;
  }
  __syncthreads();
  for (int i = thread; i < 2 * G; i += threads) {  // then over the channels of a group
    const float* channels = (i & 1 ? all_squares : shared) + (i >> 1) * width;
    float total = 0.f;
    for (int k = 0; k < width; k++) total += channels[k];
    sums[((i64)n * gridDim.x + blockIdx.x) * 2 * G + i] = total;
  }
}

// Group normalisation, second part: out = norm(x + added) * weight + bias, then SiLU if `silu`.
//
// sums is what group_sums gave in `parts` blocks. Shared memory: 2 * C + 2 * G * (max(1, threads / (2 * G)) + 1) floats.
extern "C" __global__ void group_normalise(const half_t* x, const half_t* added, const float* sums, const half_t* weight,
                                           const half_t* bias, half_t* out, int P, int C, int G, int rows, int parts,
                                           int silu, float epsilon) {
  extern __shared__ float shared[];
  const int row = threadIdx.y, height = blockDim.y, n = blockIdx.y, width = C / G;
  const int thread = row * blockDim.x + threadIdx.x, threads = blockDim.x * height;
  float* slopes = shared;
  float* offsets = shared + C;
  float* totals = shared + 2 * C;
  float* slices = totals + 2 * G;
  const int several = max(1, threads / (2 * G));
  for (int i = thread; i < 2 * G * several; i += threads) {
    const float* from = sums + (i64)n * parts * 2 * G + i % (2 * G);
    float total = 0.f;
#pragma unroll 4
    for (int part = i / (2 * G); part < parts; part += several) total += from[(i64)part * 2 * G];
    slices[i] = total;
  }
  __syncthreads();
  for (int i = thread; i < 2 * G; i += threads) {
    float total = 0.f;
    for (int slice = 0; slice < several; slice++) total += slices[slice * 2 * G + i];
    totals[i] = total;
  }
  __syncthreads();
  const float count = (float)P * width;
  for (int c = thread; c < C; c += threads) {
    const int group = c / width;
    const float difference = totals[2 * group] / count;
    const float mean = first_of(x, added, n, group, P, C, width) + difference;
    const float variance = fmaxf(totals[2 * group + 1] / count - difference * difference, 0.f);
    const float slope = rsqrtf(variance + epsilon) * wide(weight[c]);
    slopes[c] = slope;
    offsets[c] = wide(bias[c]) + ((added ? wide(added[n * C + c]) : 0.f) - mean) * slope;
  }
  __syncthreads();
  const int c = threadIdx.x * 8, first = blockIdx.x * rows, end = min(P, first + rows);
  float slope[8], offset[8];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    slope[k] = slopes[c + k];
    offset[k] = offsets[c + k];
  }
#pragma unroll 4
  for (int p = first + row; p < end; p += height) {
    const i64 at = ((i64)n * P + p) * C + c;
    Eight eight = load(x + at);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      const float value = wide(eight.of[k]) * slope[k] + offset[k];
      eight.of[k] = narrow(silu ? value / (1.f + __expf(-value)) : value);
    }
    store(out + at, eight);
  }
}

// out = a + b + bias, with a and b (rows, C) and bias (C). size = rows * C.
extern "C" __global__ void add_bias(const half_t* a, const half_t* b, const half_t* bias, half_t* out, i64 size, int C) {
  const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (i >= size) return;
  const Eight x = load(a + i), y = load(b + i), z = load(bias + i % C);
  Eight sum;
#pragma unroll
  for (int k = 0; k < 8; k++) sum.of[k] = narrow(wide(x.of[k]) + wide(y.of[k]) + wide(z.of[k]));
  store(out + i, sum);
}

// out = x * GELU(gate), where each row of `in` has C numbers of x and then C of gate. size = rows * C.
extern "C" __global__ void gated_gelu(const half_t* in, half_t* out, i64 size, int C) {
  const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (i >= size) return;
  const half_t* row = in + i / C * 2 * C + i % C;
  const Eight x = load(row), gate = load(row + C);
  Eight product;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const float g = wide(gate.of[k]);
    product.of[k] = narrow(wide(x.of[k]) * 0.5f * g * (1.f + erff(g * 0.70710678f)));
  }
  store(out + i, product);
}

// Layer normalisation of a + b: sum = a + b, out = norm(sum) * weight + bias. b may be null, then sum is not written.
//
// All are (rows, C). One warp for each row; a lane holds up to `most` times eight numbers of it.
template <int most>
__device__ __forceinline__ void layer_norm(const half_t* a, const half_t* b, const half_t* weight, const half_t* bias,
                                           half_t* sum, half_t* out, int rows, int C, float epsilon) {
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const i64 start = (i64)row * C;
  float values[most][8];
  float total = 0.f;
#pragma unroll
  for (int j = 0; j < most; j++) {
    const int c = (j * 32 + threadIdx.x) * 8;
    if (c >= C) continue;
    const Eight x = load(a + start + c);
    if (b) {
      const Eight y = load(b + start + c);
      Eight rounded;
#pragma unroll
      for (int k = 0; k < 8; k++) {
        rounded.of[k] = narrow(wide(x.of[k]) + wide(y.of[k]));
        values[j][k] = wide(rounded.of[k]);
      }
      store(sum + start + c, rounded);
    } else {
#pragma unroll
      for (int k = 0; k < 8; k++) values[j][k] = wide(x.of[k]);
    }
#pragma unroll
    for (int k = 0; k < 8; k++) total += values[j][k];
  }
#pragma unroll
  for (int lane = 16; lane; lane /= 2) total += __shfl_xor_sync(0xffffffff, total, lane);
  const float mean = total / C;
  float squares = 0.f;
#pragma unroll
  for (int j = 0; j < most; j++) {
    if ((j * 32 + threadIdx.x) * 8 >= C) continue;
#pragma unroll
    for (int k = 0; k < 8; k++) squares += (values[j][k] - mean) * (values[j][k] - mean);
  }
#pragma unroll
  for (int lane = 16; lane; lane /= 2) squares += __shfl_xor_sync(0xffffffff, squares, lane);
  const float scale = rsqrtf(squares / C + epsilon);
#pragma unroll
  for (int j = 0; j < most; j++) {
    const int c = (j * 32 + threadIdx.x) * 8;
    if (c >= C) continue;
    const Eight w = load(weight + c), z = load(bias + c);
    Eight normal;
#pragma unroll
    for (int k = 0; k < 8; k++) normal.of[k] = narrow((values[j][k] - mean) * scale * wide(w.of[k]) + wide(z.of[k]));
    store(out + start + c, normal);
  }
}

#define LAYER_NORM(most)                                                                                              \
  extern "C" __global__ void layer_norm_##most(const half_t* a, const half_t* b, const half_t* weight,                \
                                               const half_t* bias, half_t* sum, half_t* out, int rows, int C,         \
                                               float epsilon) {                                                       \
    layer_norm<most>(a, b, weight, bias, sum, out, rows, C, epsilon);                                                 \
  }
LAYER_NORM(2)
LAYER_NORM(3)
LAYER_NORM(5)
