// Functions of 16 floats. Every operation is rounded by itself, so that all lanes and NumPy (python/reference_ops.py)
// give the same bits. NaN stays NaN; gelu and silu of an infinity may be NaN.
#pragma once

#include "support.h"

namespace edge {
namespace {

constexpr size_t kLanes = 16;

// The first `count` of 16, zeros after them.
template <class L>
EDGE_INLINE typename L::Floats load_some(const float* from, size_t count) {
  if (count >= kLanes) return L::load(from);
  float lanes[kLanes] = {};
  for (size_t i = 0; i < count; ++i) lanes[i] = from[i];
  return L::load(lanes);
}

template <class L>
EDGE_INLINE void store_some(float* to, typename L::Floats x, size_t count) {
  if (count >= kLanes) {
    L::store(to, x);
    return;
  }
  float lanes[kLanes];
  L::store(lanes, x);
  for (size_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// 1 / sqrt(x), both rounded. Never a call: sqrt is an instruction of every 64-bit CPU.
EDGE_INLINE float inverse_square_root(float x) {
#if defined(__x86_64__)
  float root;
  __asm__("sqrtss %1, %0" : "=x"(root) : "x"(x));
#elif defined(__aarch64__)
  float root;
  __asm__("fsqrt %s0, %s1" : "=w"(root) : "w"(x));
#else
  const float root = __builtin_sqrtf(x);
#endif
  return 1.0f / root;
}

template <class L>
EDGE_INLINE typename L::Floats negated(typename L::Floats x) {
  return L::sub(L::zero(), x);
}

// factor * x + term in two roundings, for polynomials.
template <class L>
EDGE_INLINE typename L::Floats step(typename L::Floats x, typename L::Floats factor, float term) {
  return L::add(L::mul(factor, x), L::all(term));
}

// Cephes' expf: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, times 2^n. 0 below -87 (results that are not normal
// numbers), infinity above 88.73.
template <class L>
EDGE_INLINE typename L::Floats exp(typename L::Floats x) {
  using Floats = typename L::Floats;
  x = L::at_most(L::at_least(x, L::all(-87.0f)), L::all(89.0f));
  const auto n = L::rounded(L::mul(x, L::all(1.44269504f)));
  const Floats whole = L::floats(n);
  Floats r = L::sub(x, L::mul(whole, L::all(0.693359375f)));  // exact: 9 bits times 8
  r = L::sub(r, L::mul(whole, L::all(-2.12194440e-4f)));
  Floats y = L::all(1.9875691500e-4f);
  y = step<L>(r, y, 1.3981999507e-3f);
  y = step<L>(r, y, 8.3334519073e-3f);
  y = step<L>(r, y, 4.1665795894e-2f);
  y = step<L>(r, y, 1.6666665459e-1f);
  y = step<L>(r, y, 5.0000001201e-1f);
  y = L::add(L::add(L::mul(y, L::mul(r, r)), r), L::all(1.0f));
  return L::mul(L::add(y, y), L::half_power_of_two(n));
}

// Cephes' tanhf: an odd polynomial near 0, else 1 - 2 / (exp(2 |x|) + 1).
template <class L>
EDGE_INLINE typename L::Floats tanh(typename L::Floats x) {
  using Floats = typename L::Floats;
  const Floats size = L::abs(x), square = L::mul(x, x);
  Floats y = L::all(-5.70498872745e-3f);
  y = step<L>(square, y, 2.06390887954e-2f);
  y = step<L>(square, y, -5.37397155531e-2f);
  y = step<L>(square, y, 1.33314422036e-1f);
  y = step<L>(square, y, -3.33332819422e-1f);
  y = L::add(L::mul(L::mul(y, square), x), x);
  const Floats e = exp<L>(L::add(size, size));
  const Floats far = L::sub(L::all(1.0f), L::div(L::all(2.0f), L::add(e, L::all(1.0f))));
  return L::if_less(size, L::all(0.625f), y, L::if_less(x, L::zero(), negated<L>(far), far));
}

// x / (1 + exp(-x))
template <class L>
EDGE_INLINE typename L::Floats silu(typename L::Floats x) {
  return L::div(x, L::add(L::all(1.0f), exp<L>(negated<L>(x))));
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class L>
EDGE_INLINE typename L::Floats gelu_tanh(typename L::Floats x) {
  const auto u = L::mul(x, step<L>(L::mul(x, x), L::all(-0.0713548163f), -1.59576912f));  // -2 u
  return L::div(x, L::add(L::all(1.0f), exp<L>(u)));
}

// 0.5 x (1 + erf(z)), z = x / sqrt 2. Below |z| = 1 by Cephes' erff, an odd polynomial; else max(x, 0) - |x| q with
// q = 0.5 (1 - erf(|z|)) by Abramowitz and Stegun 7.1.26.
template <class L>
EDGE_INLINE typename L::Floats gelu(typename L::Floats x) {
  using Floats = typename L::Floats;
  const Floats size = L::abs(x), one = L::all(1.0f), half = L::mul(x, L::all(0.5f));
  const Floats z = L::mul(x, L::all(0.70710678f)), square = L::mul(z, z);
  Floats near = L::all(7.853861353153693e-5f);
  near = step<L>(square, near, -8.010193625184903e-4f);
  near = step<L>(square, near, 5.188327685732524e-3f);
  near = step<L>(square, near, -2.685381193529856e-2f);
  near = step<L>(square, near, 1.128358514861418e-1f);
  near = step<L>(square, near, -3.761262582423300e-1f);
  near = step<L>(square, near, 1.128379165726710f);
  near = L::add(half, L::mul(half, L::mul(near, z)));
  const Floats t = L::div(one, L::add(one, L::mul(L::all(0.231641888f), size)));  // 0.3275911 / sqrt 2
  Floats q = L::all(0.5307027145f);
  q = step<L>(t, q, -0.7265760135f);
  q = step<L>(t, q, 0.7107068705f);
  q = step<L>(t, q, -0.142248368f);
  q = step<L>(t, q, 0.127414796f);
  q = L::mul(L::mul(q, t), exp<L>(L::mul(L::mul(size, size), L::all(-0.5f))));
  const Floats far = L::sub(L::at_least(x, L::zero()), L::mul(size, q));
  return L::if_less(L::abs(z), one, near, far);
}

}  // namespace
}  // namespace edge
