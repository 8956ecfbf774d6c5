// FlashAttention's backward (arXiv 2307.08691, algorithm 2) for CPUs that multiply bfloat16 matrices (AMX, AVX512_BF16).
//
// torch's own keeps the sums of dk and dv in bfloat16 and multiplies with plain gemm calls. Here every product is one
// oneDNN micro-kernel on a tile that stays in the second-level cache, in the instruction set's own operand layout, and
// all sums are float32. Tiles are computed TRANSPOSED, keys by queries: then log-sum-exp and delta are vectors along
// the row, and P^T and dS^T are left operands as they lie.
//
// Operand layouts: a left operand is row-major. A right operand [K, N] is "paired" for the instruction: [K/2][N][2].

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <latch>
#include <limits>
#include <mutex>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using at::native::cpublas::brgemm;

constexpr int64_t TILE = 256;  // queries and keys of a tile: 256 KiB of fp32
constexpr int64_t STEP = 32;   // products along keys are padded to a multiple of this with zeros

// bfloat16 of x, rounded to nearest even, in the upper half
inline uint32_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// exp(x) to 2e-7 for x in [-87, 88], 0 below: 2^n * 2^f with a polynomial for |f| <= 1/2, so that loops vectorise
inline float exp_of(float x) {
  constexpr float TO_INTEGER = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float t = std::min(std::max(x, -87.f), 88.f) * 1.44269504088896341f;
  const float n = (t + TO_INTEGER) - TO_INTEGER, f = t - n;
  float p = 1.535336188319500e-4f;
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.f ? 0.f : p * power;
}

// Rows of one head, [count, D]
struct Rows {
  const BFloat16* data;
  int64_t stride, count;

  const BFloat16* operator[](int64_t row) const { return data + row * stride; }
};

// The right operand rows^T [D, TILE], paired, for each tile of rows; rows beyond the last are 0
std::vector<uint32_t> paired_transposed(const Rows& rows, int64_t D, int64_t padded) {
  std::vector<uint32_t> out(padded * D / 2, 0);
  for (int64_t r = 0; r < rows.count; ++r) {
    uint32_t* tile = out.data() + r / TILE * TILE * D / 2;
    for (int64_t pair = 0; pair < D / 2; ++pair)
      std::memcpy(tile + pair * TILE + r % TILE, rows[r] + 2 * pair, sizeof(uint32_t));
  }
  return out;
}

// The right operand rows [TILE, D], paired, for each tile of rows; rows beyond the last are 0
std::vector<BFloat16> paired(const Rows& rows, int64_t D, int64_t padded) {
  std::vector<BFloat16> out(padded * D, BFloat16(0));
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t d = 0; d < D; ++d) out[(r / 2 * D + d) * 2 + r % 2] = rows[r][d];
  return out;
}

std::vector<BFloat16> transposed(const Rows& rows, int64_t D, int64_t padded) {
  std::vector<BFloat16> out(D * padded, BFloat16(0));
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t d = 0; d < D; ++d) out[d * padded + r] = rows[r][d];
  return out;
}

struct Tile {
  std::vector<float> p = std::vector<float>(TILE * TILE), ds = std::vector<float>(TILE * TILE);
  std::vector<BFloat16> p16 = std::vector<BFloat16>(TILE * TILE), ds16 = std::vector<BFloat16>(TILE * TILE);
  std::vector<uint32_t> ds_paired = std::vector<uint32_t>(TILE * TILE / 2);

  // Row `r`, one key: scores and dP^T become P^T and dS^T, zero for the first `masked` queries
  void softmax(int64_t r, const float* lse, const float* delta, float scale, int64_t masked) {
    float *x = p.data() + r * TILE, *y = ds.data() + r * TILE;
    for (int64_t c = 0; c < TILE; ++c) {
      const float probability = exp_of(x[c] * scale - lse[c]);
      x[c] = probability;
      y[c] = probability * (y[c] - delta[c]) * scale;
    }
    std::fill(x, x + masked, 0.f);
    std::fill(y, y + masked, 0.f);
    auto* p_out = reinterpret_cast<uint16_t*>(p16.data() + r * TILE);
    auto* ds_out = reinterpret_cast<uint16_t*>(ds16.data() + r * TILE);
    for (int64_t c = 0; c < TILE; ++c) p_out[c] = rounded(x[c]) >> 16;
    for (int64_t c = 0; c < TILE; ++c) ds_out[c] = rounded(y[c]) >> 16;
  }

  void clear(int64_t r) { std::fill_n(ds.data() + r * TILE, TILE, 0.f); }

  // Rows r and r + 1 of dS^T as the right operand of dQ^T
  void pair(int64_t r) {
    const float *even = ds.data() + r * TILE, *odd = even + TILE;
    uint32_t* out = ds_paired.data() + r / 2 * TILE;
    for (int64_t c = 0; c < TILE; ++c) out[c] = (rounded(even[c]) >> 16) | (rounded(odd[c]) & 0xffff0000u);
  }
};

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One query head. dq_t [D, queries padded], dk and dv [keys, D] are overwritten.
void head_backward(const Rows& q, const Rows& k, const Rows& v, const Rows& dout, const Rows& out, const float* lse_of,
                   int64_t D, bool causal, float scale, float* dq_t, float* dk, float* dv) {
  const int64_t queries = up(q.count, TILE), keys = up(k.count, STEP);
  std::vector<float> lse(queries, std::numeric_limits<float>::infinity()), delta(queries, 0.f);
  for (int64_t i = 0; i < q.count; ++i) {
    lse[i] = lse_of[i];
    for (int64_t d = 0; d < D; ++d) delta[i] += static_cast<float>(dout[i][d]) * static_cast<float>(out[i][d]);
  }
  const auto q_t = paired_transposed(q, D, queries), dout_t = paired_transposed(dout, D, queries);
  const auto q_rows = paired(q, D, queries), dout_rows = paired(dout, D, queries);
  const auto k_t = transposed(k, D, keys);
  const auto right = [&](const std::vector<uint32_t>& operand, int64_t query) {
    return reinterpret_cast<const BFloat16*>(operand.data() + query * D / 2);
  };
  std::fill_n(dq_t, D * queries, 0.f);
  std::fill_n(dk, k.count * D, 0.f);
  std::fill_n(dv, k.count * D, 0.f);
  Tile tile;
  for (int64_t k0 = 0; k0 < k.count; k0 += TILE) {
    const int64_t n = std::min(TILE, k.count - k0), even = up(n, STEP);
    for (int64_t q0 = causal ? k0 : 0; q0 < queries; q0 += TILE) {
      brgemm(n, TILE, D, k.stride, TILE, TILE, false, k[k0], right(q_t, q0), tile.p.data());
      brgemm(n, TILE, D, v.stride, TILE, TILE, false, v[k0], right(dout_t, q0), tile.ds.data());
      for (int64_t r = 0; r < n; ++r) {
        const int64_t masked = causal ? std::clamp<int64_t>(k0 + r - q0, 0, TILE) : 0;
        tile.softmax(r, lse.data() + q0, delta.data() + q0, scale, masked);
      }
      for (int64_t r = n; r < even; ++r) tile.clear(r);
      for (int64_t r = 0; r < even; r += 2) tile.pair(r);
      brgemm(n, D, TILE, TILE, D, D, true, tile.p16.data(), dout_rows.data() + q0 * D, dv + k0 * D);
      brgemm(n, D, TILE, TILE, D, D, true, tile.ds16.data(), q_rows.data() + q0 * D, dk + k0 * D);
      const auto* ds = reinterpret_cast<const BFloat16*>(tile.ds_paired.data());
      brgemm(D, TILE, even, keys, TILE, queries, true, k_t.data() + k0, ds, dq_t + q0);
    }
  }
}

// Run work(n) for n in [0, count) on torch's threads; the first error is thrown here.
template <typename Work>
void in_parallel(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  const auto run = [&] {
    try {
      for (int64_t n = next++; n < count; n = next++) work(n);
      at::native::cpublas::brgemm_release();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  };
  const int64_t helpers = std::min<int64_t>(at::get_num_threads(), count) - 1;
  std::latch running(helpers);
  for (int64_t n = 0; n < helpers; ++n)
    at::launch([&] {
      run();
      running.count_down();
    });
  run();
  running.wait();
  if (error) std::rethrow_exception(error);
}

// q, out, dout [B, H, Sq, D], k, v [B, Hkv, Sk, D], bfloat16, the last dimension dense; lse [B, H, Sq].
// Returns dq like q, and dk, dv PER QUERY HEAD, [B, H, Sk, D] in float32.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& out, const Tensor& lse, bool causal, double scale) {
  const int64_t B = q.size(0), H = q.size(1), Sq = q.size(2), D = q.size(3), Sk = k.size(2), shared = H / k.size(1);
  const int64_t queries = up(Sq, TILE);
  const Tensor dense_lse = lse.contiguous();
  Tensor dq = at::empty({B, Sq, H, D}, q.options()).transpose(1, 2);
  const auto fp32 = q.options().dtype(at::kFloat);
  Tensor dk = at::empty({B, H, Sk, D}, fp32), dv = at::empty({B, H, Sk, D}, fp32);
  const auto rows = [](const Tensor& t, int64_t b, int64_t head) {
    return Rows{t.const_data_ptr<BFloat16>() + b * t.stride(0) + head * t.stride(1), t.stride(2), t.size(2)};
  };
  auto* dq_data = dq.mutable_data_ptr<BFloat16>();
  auto *dk_data = dk.mutable_data_ptr<float>(), *dv_data = dv.mutable_data_ptr<float>();
  in_parallel(B * H, [&](int64_t n) {
    const int64_t b = n / H, i = n % H, j = i / shared;
    std::vector<float> dq_t(D * queries);
    head_backward(rows(q, b, i), rows(k, b, j), rows(v, b, j), rows(dout, b, i), rows(out, b, i),
                  dense_lse.const_data_ptr<float>() + n * Sq, D, causal, static_cast<float>(scale), dq_t.data(),
                  dk_data + n * Sk * D, dv_data + n * Sk * D);
    BFloat16* to = dq_data + b * dq.stride(0) + i * dq.stride(1);
    for (int64_t r = 0; r < Sq; ++r)
      for (int64_t d = 0; d < D; ++d) to[r * dq.stride(2) + d] = dq_t[d * queries + r];
  });
  return {dq, dk, dv};
}

TORCH_LIBRARY_FRAGMENT(yarn_train_cpu, library) {
  library.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal, float scale)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(yarn_train_cpu, CPU, library) { library.impl("attention_backward", &backward); }

}  // namespace
