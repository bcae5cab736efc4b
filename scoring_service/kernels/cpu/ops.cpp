// Operators of the namespace `scoring_cpu`, for fp32 and bf16.
#include <algorithm>
#include <exception>
#include <initializer_list>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "attention.h"
#include "draws.h"
#include "pointwise.h"
#include "products.h"
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

// Whether there is a number for each of so many rows.
void check_rows(int64_t rows, std::initializer_list<const at::Tensor*> columns) {
  for (const at::Tensor* numbers : columns) {
    TORCH_CHECK(numbers->is_contiguous() && numbers->numel() == rows, "a number for each row expected");
  }
}

// Calls body(index, row) for each row of logits [T, V], rows side by side in threads. Temperatures
// are fp32 [T].
template <typename Body>
void for_rows(const at::Tensor& logits, const at::Tensor& temperatures, Body body) {
  TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1, "dense rows expected");
  const int64_t rows = logits.size(0), vocab = logits.size(1), stride = logits.stride(0);
  check_rows(rows, {&temperatures});
  const auto* temperature = temperatures.const_data_ptr<float>();
  with_type(logits, [&](auto kind) {
    using T = decltype(kind);
    const T* data = logits.const_data_ptr<T>();
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / vocab), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        body(i, Row<T>{data + i * stride, vocab, temperature[i]});
      }
    });
  });
}

// Maximum of x (fp32), logsumexp (fp64), entropy (fp32) and tokens above -inf (int32) of each row of
// logits [T, V].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sums_of_rows(
    const at::Tensor& logits, const at::Tensor& temperatures) {
  const int64_t rows = logits.size(0);
  at::Tensor maxima = at::empty({rows}, logits.options().dtype(at::kFloat));
  at::Tensor logsumexps = at::empty({rows}, logits.options().dtype(at::kDouble));
  at::Tensor entropies = at::empty_like(maxima);
  at::Tensor possibles = at::empty({rows}, logits.options().dtype(at::kInt));
  auto* possible = possibles.mutable_data_ptr<int32_t>();
  auto* max = maxima.mutable_data_ptr<float>();
  auto* logsumexp = logsumexps.mutable_data_ptr<double>();
  auto* entropy = entropies.mutable_data_ptr<float>();
  for_rows(logits, temperatures, [&](int64_t i, const auto& row) {
    const RowSums sums = row_sums(row);
    max[i] = sums.max;
    logsumexp[i] = sums.logsumexp;
    entropy[i] = sums.entropy;
    possible[i] = static_cast<int32_t>(sums.possible);
  });
  return {maxima, logsumexps, entropies, possibles};
}

// int32 [T]: rank of ids int64 [T] among the ids below `limit`.
at::Tensor ranks_of_rows(
    const at::Tensor& logits, const at::Tensor& temperatures, const at::Tensor& ids, int64_t limit) {
  check_rows(logits.size(0), {&ids});
  at::Tensor ranks = at::empty({logits.size(0)}, logits.options().dtype(at::kInt));
  const auto* id = ids.const_data_ptr<int64_t>();
  auto* to = ranks.mutable_data_ptr<int32_t>();
  for_rows(logits, temperatures, [&](int64_t i, const auto& row) {
    to[i] = static_cast<int32_t>(rank(row, id[i], limit));
  });
  return ranks;
}

// int64 [T, largest k]: the ks[i] best ids of row i, and zeros behind them.
at::Tensor top_ids_of_rows(
    const at::Tensor& logits, const at::Tensor& temperatures, at::IntArrayRef ks, int64_t limit) {
  const int64_t rows = logits.size(0);
  TORCH_CHECK(static_cast<int64_t>(ks.size()) == rows && limit <= logits.size(1), "a k for each row expected");
  const int64_t width = ks.empty() ? 0 : *std::max_element(ks.begin(), ks.end());
  TORCH_CHECK(width <= limit, "k is at most the limit");
  at::Tensor ids = at::empty({rows, width}, logits.options().dtype(at::kLong));
  auto* to = ids.mutable_data_ptr<int64_t>();
  for_rows(logits, temperatures, [&](int64_t i, const auto& row) {
    static thread_local TopScratch scratch;
    int64_t* first = to + i * width;
    if (ks[i] > 0) {
      top_ids(row, ks[i], limit, scratch, first);
    }
    std::fill(first + ks[i], first + width, 0);
  });
  return ids;
}

// fp64 [T]: log of the sum of exp(x) over the ids that top_ids left out.
at::Tensor log_rests_of_rows(
    const at::Tensor& logits, const at::Tensor& temperatures, const at::Tensor& last_ids, int64_t limit) {
  check_rows(logits.size(0), {&last_ids});
  at::Tensor rests = at::empty({logits.size(0)}, logits.options().dtype(at::kDouble));
  const auto* id = last_ids.const_data_ptr<int64_t>();
  auto* to = rests.mutable_data_ptr<double>();
  for_rows(logits, temperatures, [&](int64_t i, const auto& row) { to[i] = log_rest(row, id[i], limit); });
  return rests;
}

// One of each for each row.
struct Rules {
  at::IntArrayRef top_ks;
  at::ArrayRef<double> top_ps, log_min_ps;

  void check(size_t rows) const {
    TORCH_CHECK(
        top_ks.size() == rows && top_ps.size() == rows && log_min_ps.size() == rows,
        "a rule for each row expected");
  }

  Rule of(int64_t i) const { return {top_ks[i], top_ps[i], log_min_ps[i]}; }
};

// Supports of rows, each under its own rule: pivots (fp32), least ids at them (int64), sizes (int32)
// and logs of their probabilities (fp64), [T] each. maxima (fp32), logsumexps (fp64) and possibles
// (int32), [T] each, are those of row_sums.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> supports_of_rows(
    const at::Tensor& logits, const at::Tensor& temperatures, const at::Tensor& maxima,
    const at::Tensor& logsumexps, const at::Tensor& possibles, at::IntArrayRef top_ks,
    at::ArrayRef<double> top_ps, at::ArrayRef<double> log_min_ps) {
  const int64_t rows = logits.size(0);
  const Rules rules{top_ks, top_ps, log_min_ps};
  rules.check(rows);
  check_rows(rows, {&maxima, &logsumexps, &possibles});
  at::Tensor pivots = at::empty_like(maxima);
  at::Tensor least_ids = at::empty({rows}, logits.options().dtype(at::kLong));
  at::Tensor sizes = at::empty_like(possibles);
  at::Tensor log_kepts = at::empty_like(logsumexps);
  const auto* max = maxima.const_data_ptr<float>();
  const auto* logsumexp = logsumexps.const_data_ptr<double>();
  const auto* possible = possibles.const_data_ptr<int32_t>();
  auto* pivot = pivots.mutable_data_ptr<float>();
  auto* least_id = least_ids.mutable_data_ptr<int64_t>();
  auto* size = sizes.mutable_data_ptr<int32_t>();
  auto* log_kept = log_kepts.mutable_data_ptr<double>();
  for_rows(logits, temperatures, [&](int64_t i, const auto& row) {
    static thread_local SupportScratch scratch;
    const RowSums sums{max[i], logsumexp[i], 0.0f, possible[i]};
    const Support found = support_of(row, sums, rules.of(i), scratch);
    pivot[i] = found.pivot;
    least_id[i] = found.least_id;
    size[i] = static_cast<int32_t>(found.size);
    log_kept[i] = found.log_kept;
  });
  return {pivots, least_ids, sizes, log_kepts};
}

// A token of each row (int64 [T]), its log-prob in the row's support (fp32 [T]), and whether there was
// one (bool [T]). maxima (fp32) and logsumexps (fp64), [T] each, are those of row_sums; bans[i] of
// `banned` belong to row i; seeds have the bits of uint64.
std::tuple<at::Tensor, at::Tensor, at::Tensor> draw_rows(
    const at::Tensor& logits, const at::Tensor& temperatures, const at::Tensor& maxima,
    const at::Tensor& logsumexps, at::IntArrayRef greedy, at::IntArrayRef top_ks,
    at::ArrayRef<double> top_ps, at::ArrayRef<double> log_min_ps, at::IntArrayRef bans,
    at::IntArrayRef banned, at::IntArrayRef seeds, at::IntArrayRef sample_indices,
    at::IntArrayRef positions) {
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const Rules rules{top_ks, top_ps, log_min_ps};
  rules.check(rows);
  check_rows(rows, {&maxima, &logsumexps});
  for (const at::IntArrayRef numbers : {greedy, bans, seeds, sample_indices, positions}) {
    TORCH_CHECK(static_cast<int64_t>(numbers.size()) == rows, "a number for each row expected");
  }
  std::vector<std::span<const int64_t>> bans_of;
  const int64_t* next = banned.data();
  for (const int64_t count : bans) {
    bans_of.emplace_back(next, count);
    next += count;
  }
  TORCH_CHECK(next == banned.data() + banned.size(), "as many ids as bans expected");
  for (const int64_t id : banned) {
    TORCH_CHECK(0 <= id && id < vocab, "ids of the vocabulary expected");
  }
  at::Tensor ids = at::empty({rows}, logits.options().dtype(at::kLong));
  at::Tensor logprobs = at::empty_like(maxima);
  at::Tensor drawables = at::empty({rows}, logits.options().dtype(at::kBool));
  const auto* max = maxima.const_data_ptr<float>();
  const auto* logsumexp = logsumexps.const_data_ptr<double>();
  auto* id = ids.mutable_data_ptr<int64_t>();
  auto* logprob = logprobs.mutable_data_ptr<float>();
  auto* drawable = drawables.mutable_data_ptr<bool>();
  for_rows(logits, temperatures, [&](int64_t i, const auto& whole) {
    static thread_local DrawScratch scratch;
    const Draw draw{static_cast<uint64_t>(seeds[i]), static_cast<uint32_t>(positions[i]),
                    static_cast<uint32_t>(sample_indices[i])};
    const RowSums known{max[i], logsumexp[i], 0.0f, vocab};
    const DrawnToken found = with_allowed(
        whole, known, bans_of[i], scratch, [&](const auto& row, const RowSums& sums) {
          return drawn(row, sums, greedy[i] != 0, rules.of(i), draw, scratch);
        });
    id[i] = found.id;
    logprob[i] = found.logprob;
    drawable[i] = found.drawable;
  });
  return {ids, logprobs, drawables};
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
  library.def("row_sums(Tensor logits, Tensor temperatures) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("ranks(Tensor logits, Tensor temperatures, Tensor ids, int limit) -> Tensor");
  library.def("top_ids(Tensor logits, Tensor temperatures, int[] ks, int limit) -> Tensor");
  library.def(
      "supports(Tensor logits, Tensor temperatures, Tensor maxima, Tensor logsumexps, "
      "Tensor possibles, int[] top_ks, float[] top_ps, float[] log_min_ps) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "draw(Tensor logits, Tensor temperatures, Tensor maxima, Tensor logsumexps, int[] greedy, "
      "int[] top_ks, float[] top_ps, float[] log_min_ps, int[] bans, int[] banned, int[] seeds, "
      "int[] sample_indices, int[] positions) -> (Tensor, Tensor, Tensor)");
  library.def("log_rests(Tensor logits, Tensor temperatures, Tensor last_ids, int limit) -> Tensor");
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
  library.impl("draw", draw_rows);
  library.impl("log_rests", log_rests_of_rows);
}

} // namespace
} // namespace scoring
