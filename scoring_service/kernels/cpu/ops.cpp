// Operators of the namespace `scoring_cpu`, for fp32 and bf16.
#include <exception>
#include <optional>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "attention.h"
#include "pointwise.h"
#include "products.h"
#include "race.h"
#include "rows.h"
#include "support.h"

namespace scoring {
namespace {

constexpr int64_t kGrain = 32768; // Numbers that are worth another thread.

template <typename Body>
void with_type(const at::Tensor& tensor, Body body) {
  if (tensor.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "fp32 or bf16 expected");
    body(c10::BFloat16{});
  }
}

template <typename T>
void keep(const Heads<T>& source, const at::Tensor& pool, const at::Tensor& rows,
          const at::Tensor& slots) {
  const int64_t count = rows.numel(), heads = pool.size(0), width = pool.size(2);
  const auto* from = rows.const_data_ptr<int64_t>();
  const auto* to = slots.const_data_ptr<int64_t>();
  auto* data = pool.mutable_data_ptr<T>();
  const int64_t head_stride = pool.stride(0), row_stride = pool.stride(1);
  at::parallel_for(0, count, std::max<int64_t>(1, kGrain / (heads * width)), [&](int64_t a, int64_t b) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = a; i < b; ++i) {
        std::memcpy(data + head * head_stride + to[i] * row_stride, source.row(head, from[i]),
                    width * sizeof(T));
      }
    }
  });
}

void clear_rows_of_no_node(const Node* nodes, int64_t count, at::Tensor& output) {
  int64_t tokens = 0, end = 0;
  for (int64_t i = 0; i < count; ++i) {
    tokens += nodes[i].tokens;
    end = std::max(end, nodes[i].row + nodes[i].tokens);
  }
  // Nodes do not overlap, so that they lie side by side if they are as long as their end.
  const int64_t first = tokens == end ? end : 0;
  output.narrow(0, first, output.size(0) - first).zero_();
}

// queries [heads, T, D], keys [kv heads, T, D], values [kv heads, T, Dv], pools [kv heads, slots, .],
// kept_rows and kept_slots int64 [n], nodes int64 [N, 5], runs int64 [R, 4], sinks fp32 [heads].
// Returns [T, heads, Dv].
at::Tensor attend(
    const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
    const at::Tensor& pool_keys, const at::Tensor& pool_values, const at::Tensor& kept_rows,
    const at::Tensor& kept_slots, const at::Tensor& nodes, const at::Tensor& runs, double scaling,
    std::optional<int64_t> window, std::optional<double> softcap,
    const std::optional<at::Tensor>& sinks) {
  const int64_t heads = queries.size(0), rows = queries.size(1);
  const int64_t kv_heads = keys.size(0);
  TORCH_CHECK(queries.size(2) % 2 == 0 && values.size(2) % 2 == 0, "widths must be even");
  TORCH_CHECK(queries.size(2) <= kWidest && values.size(2) <= kWidest, "widths of at most 2048");
  TORCH_CHECK(heads % kv_heads == 0, "query heads must be a multiple of key heads");
  TORCH_CHECK(nodes.is_contiguous() && runs.is_contiguous(), "tables must be dense");
  static_assert(sizeof(Node) == 5 * sizeof(int64_t) && sizeof(Run) == 4 * sizeof(int64_t));
  const Layer layer{
      static_cast<float>(scaling), window.value_or(0), static_cast<float>(softcap.value_or(0.0)),
      sinks.has_value() ? sinks->const_data_ptr<float>() : nullptr};
  at::Tensor output = at::empty({rows, heads, values.size(2)}, values.options());
  with_type(queries, [&](auto kind) {
    using T = decltype(kind);
    Step<T> step;
    step.queries = Heads<T>(queries);
    step.keys = Heads<T>(keys);
    step.values = Heads<T>(values);
    step.pool_keys = Heads<T>(pool_keys);
    step.pool_values = Heads<T>(pool_values);
    step.group = heads / kv_heads;
    step.width = queries.size(2);
    step.value_width = values.size(2);
    step.runs = reinterpret_cast<const Run*>(runs.const_data_ptr<int64_t>());
    step.output = output.mutable_data_ptr<T>();
    step.heads = heads;
    keep(step.keys, pool_keys, kept_rows, kept_slots);
    keep(step.values, pool_values, kept_rows, kept_slots);
    const auto* node = reinterpret_cast<const Node*>(nodes.const_data_ptr<int64_t>());
    clear_rows_of_no_node(node, nodes.size(0), output);
    attend_nodes(step, layer, node, nodes.size(0), kv_heads);
  });
  return output;
}

// Whether this processor has products of such numbers: for bf16, AVX512_BF16 or AMX. What torch lets
// pass oneDNN may refuse, with an exception of its own, as on AVX-512 without BF16.
bool multiplies(at::ScalarType type) {
  const at::Tensor empty = at::empty({0}, type);
  try {
    with_type(empty, [](auto kind) {
      using T = decltype(kind);
      const std::vector<T> left(kRowMultiple * 2), right(2 * kKeyMultiple);
      std::vector<float> product(kRowMultiple * kKeyMultiple);
      const ProductScope scope;
      at::native::cpublas::brgemm(
          kRowMultiple, kKeyMultiple, 2, 2, kKeyMultiple, kKeyMultiple, false, left.data(),
          right.data(), product.data(), !std::is_same_v<T, float>);
    });
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

// bf16 [V, H] in the layout of `linear`, [ceil(V / 64), H, 64], into `packed`.
void pack_linear(const at::Tensor& weight, at::Tensor& packed) {
  const int64_t columns = weight.size(0), width = weight.size(1);
  TORCH_CHECK(weight.scalar_type() == at::kBFloat16 && weight.is_contiguous(), "dense bf16 expected");
  TORCH_CHECK(width % 2 == 0, "an even width expected");
  TORCH_CHECK(
      packed.scalar_type() == at::kBFloat16 && packed.is_contiguous() &&
          packed.numel() == blocks_of(columns) * kBlockColumns * width,
      "as many dense bf16 as whole blocks have expected");
  pack_weight(
      weight.const_data_ptr<c10::BFloat16>(), columns, width, packed.mutable_data_ptr<c10::BFloat16>());
}

// fp32 [T, V] of bf16 rows [T, H] and a weight [V, H] that `pack_linear` packed.
at::Tensor linear(const at::Tensor& input, const at::Tensor& packed, int64_t columns) {
  const at::Tensor rows = input.contiguous();
  const int64_t count = rows.size(0), width = rows.size(1);
  TORCH_CHECK(
      rows.scalar_type() == at::kBFloat16 && packed.scalar_type() == at::kBFloat16, "bf16 expected");
  TORCH_CHECK(
      packed.is_contiguous() && packed.numel() == blocks_of(columns) * kBlockColumns * width,
      "a weight of this width expected");
  at::Tensor product = at::empty({count, columns}, rows.options().dtype(at::kFloat));
  multiply(
      rows.const_data_ptr<c10::BFloat16>(), count, width, packed.const_data_ptr<c10::BFloat16>(), columns,
      product.mutable_data_ptr<float>());
  return product;
}

// Rows [..., H] in the weight's type.
at::Tensor rms_norm(const at::Tensor& input, const at::Tensor& weight, double eps, bool offset) {
  const at::Tensor source = input.contiguous();
  at::Tensor output = at::empty(source.sizes(), weight.options());
  const int64_t n = source.size(-1), rows = source.numel() / n;
  with_type(source, [&](auto kind) {
    const auto* from = source.const_data_ptr<decltype(kind)>();
    with_type(weight, [&](auto weight_kind) {
      using T = decltype(weight_kind);
      const T* by = weight.const_data_ptr<T>();
      T* to = output.mutable_data_ptr<T>();
      at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / n), [&](int64_t a, int64_t b) {
        for (int64_t row = a; row < b; ++row) {
          rms_norm_row(from + row * n, by, n, static_cast<float>(eps), offset, to + row * n);
        }
      });
    });
  });
  return output;
}

// residual fp32 + x of equal dense shapes, into `sum`, which may be the residual.
void add_rows(const at::Tensor& residual, const at::Tensor& x, at::Tensor& sum) {
  const at::Tensor right = x.contiguous();
  TORCH_CHECK(residual.sizes() == x.sizes() && sum.sizes() == x.sizes(), "equal shapes expected");
  TORCH_CHECK(residual.is_contiguous() && sum.is_contiguous(), "dense rows expected");
  constexpr int64_t kPiece = 512;
  const int64_t n = right.numel();
  const float* from = residual.const_data_ptr<float>();
  float* to = sum.mutable_data_ptr<float>();
  with_type(right, [&](auto kind) {
    const auto* add = right.const_data_ptr<decltype(kind)>();
    at::parallel_for(0, (n + kPiece - 1) / kPiece, kGrain / kPiece, [&](int64_t a, int64_t b) {
      const int64_t begin = a * kPiece, end = std::min(n, b * kPiece);
      add_to_residual(from + begin, add + begin, end - begin, to + begin);
    });
  });
}

// silu(gate) * up of equal dense shapes.
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  const at::Tensor left = gate.contiguous(), right = up.contiguous();
  at::Tensor output = at::empty_like(left);
  constexpr int64_t kPiece = 512;
  const int64_t n = left.numel();
  with_type(left, [&](auto kind) {
    using T = decltype(kind);
    const T* g = left.const_data_ptr<T>();
    const T* u = right.const_data_ptr<T>();
    T* to = output.mutable_data_ptr<T>();
    at::parallel_for(0, (n + kPiece - 1) / kPiece, kGrain / 4 / kPiece, [&](int64_t a, int64_t b) {
      const int64_t begin = a * kPiece, end = std::min(n, b * kPiece);
      silu_times(g + begin, u + begin, end - begin, to + begin);
    });
  });
  return output;
}

// [heads, T, D] turned by cos and sin [T, D]; the result is dense as [T, heads, D].
at::Tensor rotate(const at::Tensor& input, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t heads = input.size(0), rows = input.size(1), width = input.size(2);
  at::Tensor output = at::empty({rows, heads, width}, input.options());
  const at::Tensor c = cos.contiguous(), s = sin.contiguous();
  with_type(input, [&](auto kind) {
    using T = decltype(kind);
    const Heads<T> source(input);
    const T* by_cos = c.const_data_ptr<T>();
    const T* by_sin = s.const_data_ptr<T>();
    T* to = output.mutable_data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, kGrain / 2 / (heads * width));
    at::parallel_for(0, rows, grain, [&](int64_t a, int64_t b) {
      for (int64_t row = a; row < b; ++row) {
        for (int64_t head = 0; head < heads; ++head) {
          rotate_row(source.row(head, row), by_cos + row * width, by_sin + row * width, width,
                     to + (row * heads + head) * width);
        }
      }
    });
  });
  return output.transpose(0, 1);
}

// Calls body(index, row) for each row of logits [T, V], rows side by side in threads.
template <typename Body>
void for_rows(const at::Tensor& logits, double temperature, Body body) {
  TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1, "dense rows expected");
  const int64_t rows = logits.size(0), vocab = logits.size(1), stride = logits.stride(0);
  with_type(logits, [&](auto kind) {
    using T = decltype(kind);
    const T* data = logits.const_data_ptr<T>();
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / vocab), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        body(i, Row<T>{data + i * stride, vocab, static_cast<float>(temperature)});
      }
    });
  });
}

// Maximum of x (fp32), logsumexp (fp64), entropy (fp32) and tokens above -inf (int32) of each row of
// logits [T, V].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sums_of_rows(const at::Tensor& logits, double temperature) {
  const int64_t rows = logits.size(0);
  at::Tensor maxima = at::empty({rows}, logits.options().dtype(at::kFloat));
  at::Tensor logsumexps = at::empty({rows}, logits.options().dtype(at::kDouble));
  at::Tensor entropies = at::empty_like(maxima);
  at::Tensor possibles = at::empty({rows}, logits.options().dtype(at::kInt));
  auto* possible = possibles.mutable_data_ptr<int32_t>();
  auto* max = maxima.mutable_data_ptr<float>();
  auto* logsumexp = logsumexps.mutable_data_ptr<double>();
  auto* entropy = entropies.mutable_data_ptr<float>();
  for_rows(logits, temperature, [&](int64_t i, const auto& row) {
    const RowSums sums = row_sums(row);
    max[i] = sums.max;
    logsumexp[i] = sums.logsumexp;
    entropy[i] = sums.entropy;
    possible[i] = static_cast<int32_t>(sums.possible);
  });
  return {maxima, logsumexps, entropies, possibles};
}

// int32 [T]: rank of ids int64 [T] among the ids below `limit`.
at::Tensor ranks_of_rows(const at::Tensor& logits, double temperature, const at::Tensor& ids, int64_t limit) {
  TORCH_CHECK(ids.is_contiguous() && ids.size(0) == logits.size(0), "an id for each row expected");
  at::Tensor ranks = at::empty({logits.size(0)}, logits.options().dtype(at::kInt));
  const auto* id = ids.const_data_ptr<int64_t>();
  auto* to = ranks.mutable_data_ptr<int32_t>();
  for_rows(logits, temperature, [&](int64_t i, const auto& row) {
    to[i] = static_cast<int32_t>(rank(row, id[i], limit));
  });
  return ranks;
}

// int64 [T, k]
at::Tensor top_ids_of_rows(const at::Tensor& logits, double temperature, int64_t k, int64_t limit) {
  TORCH_CHECK(0 < k && k <= limit && limit <= logits.size(1), "k is in [1, limit]");
  at::Tensor ids = at::empty({logits.size(0), k}, logits.options().dtype(at::kLong));
  auto* to = ids.mutable_data_ptr<int64_t>();
  for_rows(logits, temperature, [&](int64_t i, const auto& row) {
    static thread_local TopScratch scratch;
    top_ids(row, k, limit, scratch, to + i * k);
  });
  return ids;
}

// fp64 [T]: log of the sum of exp(x) over the ids that top_ids left out.
at::Tensor log_rests_of_rows(const at::Tensor& logits, double temperature, const at::Tensor& last_ids, int64_t limit) {
  TORCH_CHECK(last_ids.is_contiguous() && last_ids.size(0) == logits.size(0), "an id for each row expected");
  at::Tensor rests = at::empty({logits.size(0)}, logits.options().dtype(at::kDouble));
  const auto* id = last_ids.const_data_ptr<int64_t>();
  auto* to = rests.mutable_data_ptr<double>();
  for_rows(logits, temperature, [&](int64_t i, const auto& row) { to[i] = log_rest(row, id[i], limit); });
  return rests;
}

// Supports of rows under one rule: pivots (fp32), least ids at them (int64), sizes (int32) and logs of
// the sums of exp(x - max) (fp64), [T] each. maxima fp32 [T].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> supports_of_rows(
    const at::Tensor& logits, double temperature, const at::Tensor& maxima, int64_t top_k,
    double top_p, double log_min_p) {
  const int64_t rows = logits.size(0);
  TORCH_CHECK(maxima.is_contiguous() && maxima.numel() == rows, "a maximum for each row expected");
  at::Tensor pivots = at::empty_like(maxima);
  at::Tensor least_ids = at::empty({rows}, logits.options().dtype(at::kLong));
  at::Tensor sizes = at::empty({rows}, logits.options().dtype(at::kInt));
  at::Tensor log_masses = at::empty({rows}, logits.options().dtype(at::kDouble));
  const auto* max = maxima.const_data_ptr<float>();
  auto* pivot = pivots.mutable_data_ptr<float>();
  auto* least_id = least_ids.mutable_data_ptr<int64_t>();
  auto* size = sizes.mutable_data_ptr<int32_t>();
  auto* log_mass = log_masses.mutable_data_ptr<double>();
  for_rows(logits, temperature, [&](int64_t i, const auto& row) {
    static thread_local SupportScratch scratch;
    const Support found = support_of(row, max[i], Rule{top_k, top_p, log_min_p}, scratch);
    pivot[i] = found.pivot;
    least_id[i] = found.least_id;
    size[i] = static_cast<int32_t>(found.size);
    log_mass[i] = found.log_mass;
  });
  return {pivots, least_ids, sizes, log_masses};
}

// int64 [T]: a token of each row's support. maxima and pivots fp32, least_ids, seeds (the bits of
// uint64), sample_indices and positions int64, [T] each.
at::Tensor race_rows(const at::Tensor& logits, double temperature, const at::Tensor& maxima,
                     const at::Tensor& pivots, const at::Tensor& least_ids, const at::Tensor& seeds,
                     const at::Tensor& sample_indices, const at::Tensor& positions) {
  const int64_t rows = logits.size(0);
  for (const at::Tensor* numbers : {&maxima, &pivots, &least_ids, &seeds, &sample_indices, &positions}) {
    TORCH_CHECK(numbers->is_contiguous() && numbers->numel() == rows, "a number for each row expected");
  }
  at::Tensor winners = at::empty({rows}, logits.options().dtype(at::kLong));
  const auto* max = maxima.const_data_ptr<float>();
  const auto* pivot = pivots.const_data_ptr<float>();
  const auto* least_id = least_ids.const_data_ptr<int64_t>();
  const auto* seed = seeds.const_data_ptr<int64_t>();
  const auto* sample_index = sample_indices.const_data_ptr<int64_t>();
  const auto* position = positions.const_data_ptr<int64_t>();
  auto* to = winners.mutable_data_ptr<int64_t>();
  for_rows(logits, temperature, [&](int64_t i, const auto& row) {
    const Draw draw{static_cast<uint64_t>(seed[i]), static_cast<uint32_t>(position[i]),
                    static_cast<uint32_t>(sample_index[i])};
    to[i] = race(row, max[i], pivot[i], least_id[i], draw);
  });
  return winners;
}

TORCH_LIBRARY(scoring_cpu, library) {
  library.def(
      "attend(Tensor queries, Tensor keys, Tensor values, Tensor(a!) pool_keys, "
      "Tensor(b!) pool_values, Tensor kept_rows, Tensor kept_slots, Tensor nodes, Tensor runs, "
      "float scaling, int? window, float? softcap, Tensor? sinks) -> Tensor");
  library.def("multiplies(ScalarType type) -> bool", multiplies);
  library.def("pack_linear(Tensor weight, Tensor(a!) packed) -> ()");
  library.def("linear(Tensor input, Tensor packed, int columns) -> Tensor");
  library.def("rms_norm(Tensor input, Tensor weight, float eps, bool offset) -> Tensor");
  library.def("add_rows(Tensor residual, Tensor x, Tensor(a!) sum) -> ()");
  library.def("silu_mul(Tensor gate, Tensor up) -> Tensor");
  library.def("rotate(Tensor input, Tensor cos, Tensor sin) -> Tensor");
  library.def("row_sums(Tensor logits, float temperature) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("ranks(Tensor logits, float temperature, Tensor ids, int limit) -> Tensor");
  library.def("top_ids(Tensor logits, float temperature, int k, int limit) -> Tensor");
  library.def(
      "supports(Tensor logits, float temperature, Tensor maxima, int top_k, float top_p, "
      "float log_min_p) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "race(Tensor logits, float temperature, Tensor maxima, Tensor pivots, Tensor least_ids, "
      "Tensor seeds, Tensor sample_indices, Tensor positions) -> Tensor");
  library.def("log_rests(Tensor logits, float temperature, Tensor last_ids, int limit) -> Tensor");
}

TORCH_LIBRARY_IMPL(scoring_cpu, CPU, library) {
  library.impl("attend", attend);
  library.impl("pack_linear", pack_linear);
  library.impl("linear", linear);
  library.impl("rms_norm", rms_norm);
  library.impl("add_rows", add_rows);
  library.impl("silu_mul", silu_mul);
  library.impl("rotate", rotate);
  library.impl("row_sums", sums_of_rows);
  library.impl("ranks", ranks_of_rows);
  library.impl("top_ids", top_ids_of_rows);
  library.impl("supports", supports_of_rows);
  library.impl("race", race_rows);
  library.impl("log_rests", log_rests_of_rows);
}

} // namespace
} // namespace scoring
