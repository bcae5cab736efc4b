// Attention of one layer over a packed step: every node attends to its chain and, causally, to
// itself. Scores and sums are fp32 whatever the factors are.
//
// A row's bits depend on its position and its chain alone: neither on other nodes nor on where its
// own is cut (save into single tokens) nor on the number of threads.
#pragma once

#include <algorithm>
#include <exception>
#include <vector>

#include "attend_block.h"
#include "attend_token.h"
#include "chains.h"
#include "products.h"

namespace scoring {

// What one thread does for one key head: of a node of one token that is read in place, positions
// [begin, end) of its chain; of any other, tokens [begin, end).
struct Task {
  const Node* node;
  int64_t head;
  int64_t begin;
  int64_t end;
  Partial* partials; // [group], or null
  int64_t parts; // Of the whole chain, where this is the first one; else 0.
};

// Tasks in the order of nodes, tokens, heads. Partials of a chain's next part lie kv_heads * group
// behind.
template <typename T>
std::vector<Task> tasks_of(
    const Step<T>& step, const Layer& layer, const Node* nodes, int64_t count, int64_t kv_heads,
    bool in_place, std::vector<Partial>& partials, std::vector<float>& sums) {
  const int64_t tokens = std::max<int64_t>(1, kBlockRows / step.group);
  std::vector<Task> tasks;
  int64_t held = 0;
  for (const Node* node = nodes; node != nodes + count; ++node) {
    const bool keys = in_place && node->tokens == 1;
    const int64_t first = keys ? oldest_key(layer, *node) : 0;
    const int64_t stop = keys ? node->first + 1 : node->tokens;
    const int64_t most = keys ? kPartKeys : tokens;
    const int64_t parts = keys ? (stop - 1) / most - first / most + 1 : 0;
    for (int64_t begin = first, end; begin < stop; begin = end) {
      end = std::min((begin / most + 1) * most, stop);
      for (int64_t head = 0; head < kv_heads; ++head) {
        tasks.push_back({node, head, begin, end, nullptr, begin == first ? parts : 0});
        held += keys;
      }
    }
  }
  partials.resize(held * step.group);
  sums.resize(held * step.group * step.width);
  for (size_t i = 0; i < partials.size(); ++i) {
    partials[i].sums = sums.data() + i * step.width;
  }
  Partial* next = partials.data();
  for (Task& task : tasks) {
    if (in_place && task.node->tokens == 1) {
      task.partials = next;
      next += step.group;
    }
  }
  return tasks;
}

template <typename T>
void attend_nodes(
    const Step<T>& step, const Layer& layer, const Node* nodes, int64_t count, int64_t kv_heads) {
  static thread_local std::vector<Partial> partials;
  static thread_local std::vector<float> sums;
  const AttendKeys<T> attend_keys = attend_keys_of(step);
  const std::vector<Task> tasks =
      tasks_of(step, layer, nodes, count, kv_heads, attend_keys != nullptr, partials, sums);
  const auto total = static_cast<int64_t>(tasks.size());
  std::exception_ptr failure; // Out of memory, or of what a product is compiled in.
#pragma omp parallel if (total > 1)
  {
    static thread_local BlockMemory<T> block_memory;
    static thread_local TokenMemory token_memory;
    const ProductScope scope;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < total; ++i) {
      const Task& task = tasks[i];
      try {
        if (task.partials != nullptr) {
          attend_keys(
              step, layer, *task.node, task.head, task.begin, task.end, token_memory,
              task.partials);
        } else {
          attend_block(
              step, layer, *task.node, task.head, task.begin, task.end, block_memory);
        }
      } catch (...) {
#pragma omp critical
        failure = std::current_exception();
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < total; ++i) {
      const Task& task = tasks[i];
      for (int64_t g = 0; g < step.group && task.parts > 0; ++g) {
        put_together(
            step, layer, *task.node, task.head * step.group + g, task.partials + g, task.parts,
            kv_heads * step.group);
      }
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

} // namespace scoring
