// What to run: lines of `key value`, the first `edge-plan 1`.
#pragma once

#include "text.h"

namespace edge {

enum Mode { kRepetitions, kSustained, kConversation };

// A stretch of a conversation: the tokens that it reads, then how many it makes.
struct Turn {
  const int64_t* prompt;
  long prompt_tokens, generated;
};

struct Plan {
  const char *digest = nullptr, *model = nullptr, *onnxruntime = nullptr, *kernels = nullptr, *samples = nullptr;
  const char *profile = nullptr, *generated = nullptr;
  double kl_limit = -1, cv_gate = 0.1;
  long vocab = 0, context = 0, threads = 0, warm_ups = 0, repetitions = 0, most_repetitions = 0, min_ns = 0,
       most_ns = 0;
  long cool_down_ns = 0, start_below_mc = 0, wait_ns = 0, idle_ns = 0;
  Mode mode = kRepetitions;
  List<Turn> turns;
  List<long> cores;
  List<const char*> temperature, frequency, cap;
};

// Also reads the prompts. A plan that fails may still have got its digest.
bool read_plan(const char* path, Plan& plan, Failure& failure);

}  // namespace edge
