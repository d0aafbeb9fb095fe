// Half precision and tensor cores for cuda_on_cpu.h: halves are rounded after every operation, and every thread of a
// warp holds the whole of a fragment.
#pragma once
#include <cstdint>
#include <cstring>

#define __host__
#define __align__(n) alignas(n)

struct half {
  uint16_t bits = 0;
  half() = default;
  half(float value) {  // to the nearest, ties to even
    uint32_t u;
    memcpy(&u, &value, 4);
    uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude >= 0x7f800000) bits = sign | 0x7c00 | (magnitude > 0x7f800000 ? 0x200 : 0);
    else if (magnitude >= 0x477ff000) bits = sign | 0x7c00;
    else {
      float scaled;
      memcpy(&scaled, &magnitude, 4);
      if (magnitude < 0x38800000) bits = sign | uint16_t(std::nearbyint(scaled * 0x1p24f));
      else bits = sign | uint16_t((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
    }
  }
  half(const volatile half& other) : bits(other.bits) {}
  half(const half& other) = default;
  half& operator=(const half& other) = default;
  void operator=(const half& other) volatile { bits = other.bits; }
  operator float() const {
    uint32_t exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? std::ldexp(float(1024 + fraction), int(exponent) - 25)
                                 : std::ldexp(float(fraction), -24);
    return bits & 0x8000 ? -value : value;
  }
};
using __half = half;
struct __half2 {};
struct alignas(4) half2 { half x, y; };
static half2 make_half2(half x, half y) { return {x, y}; }
static half operator+(half a, half b) { return half(float(a) + float(b)); }
static half operator-(half a, half b) { return half(float(a) - float(b)); }
static half operator*(half a, half b) { return half(float(a) * float(b)); }
static half operator/(half a, half b) { return half(float(a) / float(b)); }
static bool __hgt(half a, half b) { return float(a) > float(b); }
static bool __hlt(half a, half b) { return float(a) < float(b); }
static float __half2float(half x) { return float(x); }
static half __float2half(float x) { return half(x); }
static half __float2half_rn(float x) { return half(x); }
static half hexp(half x) { return half(std::exp(float(x))); }
static half htanh(half x) { return half(std::tanh(float(x))); }
static half hrsqrt(half x) { return half(1 / std::sqrt(float(x))); }
static half hsqrt(half x) { return half(std::sqrt(float(x))); }

namespace nvcuda::wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M, columns = std::is_same_v<Use, matrix_a> ? K : N;
  T held[rows][columns];
};
template <class U, int M, int N, int K, class T>
static void fill_fragment(fragment<U, M, N, K, T>& f, float value) {
  for (auto& row : f.held)
    for (auto& cell : row) cell = T(value);
}
template <class U, int M, int N, int K, class T, class L>
static void load_matrix_sync(fragment<U, M, N, K, T, L>& f, const T* from, unsigned stride) {
  for (int i = 0; i < f.rows; ++i)
    for (int j = 0; j < f.columns; ++j)
      f.held[i][j] = std::is_same_v<L, row_major> ? from[i * stride + j] : from[j * stride + i];
}
template <class T, int M, int N, int K>
static void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) to[layout == mem_row_major ? i * stride + j : j * stride + i] = f.held[i][j];
}
template <int M, int N, int K, class T, class A, class B>
static void mma_sync(fragment<accumulator, M, N, K, T>& d, const fragment<matrix_a, M, N, K, half, A>& a,
                     const fragment<matrix_b, M, N, K, half, B>& b, const fragment<accumulator, M, N, K, T>& c) {
  float right[K][N];
  for (int k = 0; k < K; ++k)
    for (int j = 0; j < N; ++j) right[k][j] = b.held[k][j];
  for (int i = 0; i < M; ++i) {
    float sums[N];
    for (int j = 0; j < N; ++j) sums[j] = c.held[i][j];
    for (int k = 0; k < K; ++k) {
      float left = a.held[i][k];
      for (int j = 0; j < N; ++j) sums[j] += left * right[k][j];
    }
    for (int j = 0; j < N; ++j) d.held[i][j] = sums[j];
  }
}
}  // namespace nvcuda::wmma
