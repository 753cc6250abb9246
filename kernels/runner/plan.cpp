#include "plan.h"

namespace edge {
namespace {

struct TextKey {
  const char* name;
  const char* Plan::* field;
  bool needed;
};
struct NumberKey {
  const char* name;
  long Plan::* field;
  long lowest;  // -1: the key is needed, and 0 is too little
};

constexpr TextKey kTexts[] = {
    {"digest", &Plan::digest, true},           {"model", &Plan::model, true},
    {"onnxruntime", &Plan::onnxruntime, true}, {"kernels", &Plan::kernels, false},
    {"samples", &Plan::samples, true},         {"profile", &Plan::profile, false},
    {"generated", &Plan::generated, false},
};
constexpr long kNeeded = -1;
constexpr NumberKey kNumbers[] = {
    {"vocab", &Plan::vocab, kNeeded},
    {"context", &Plan::context, kNeeded},
    {"threads", &Plan::threads, 0},
    {"warm_ups", &Plan::warm_ups, 0},
    {"repetitions", &Plan::repetitions, kNeeded},
    {"most_repetitions", &Plan::most_repetitions, 0},
    {"min_ns", &Plan::min_ns, 0},
    {"most_ns", &Plan::most_ns, 0},
    {"cool_down_ns", &Plan::cool_down_ns, 0},
    {"start_below_mc", &Plan::start_below_mc, 1},
    {"wait_ns", &Plan::wait_ns, 0},
    {"idle_ns", &Plan::idle_ns, 0},
};
constexpr const char* kModes[] = {"repetitions", "sustained", "conversation"};

// A whole number up to the end of the text.
bool parse_long(const char* text, long& out) {
  char* end = nullptr;
  out = strtol(text, &end, 10);
  return end != text && *end == 0;
}

bool bad_value(const char* key, const char* value, const char* wanted, Failure& failure) {
  return fail(failure, "usage", "the plan's %s is '%.100s', not %s", key, value, wanted);
}

bool read_prompt(const char* path, Turn& turn, Failure& failure) {
  Text tokens;
  if (!read_file(path, tokens)) return fail(failure, "usage", "prompt %.300s: %s", path, strerror(errno));
  if (tokens.size == 0 || tokens.size % sizeof(int64_t) != 0) {
    return fail(failure, "usage", "prompt %.300s has %zu bytes: it holds one int64 per token", path, tokens.size);
  }
  turn.prompt = reinterpret_cast<const int64_t*>(tokens.data);
  turn.prompt_tokens = static_cast<long>(tokens.size / sizeof(int64_t));
  return true;
}

// `turn PROMPTFILE GENERATED`: the number follows the last space, as a path may have some.
bool add_turn(char* value, Plan& plan, Failure& failure) {
  char* space = nullptr;
  for (char* at = value; *at; ++at) space = *at == ' ' ? at : space;
  Turn turn = {};
  if (!space || !parse_long(space + 1, turn.generated) || turn.generated < 1) {
    return bad_value("turn", value, "a prompt's file and how many tokens follow", failure);
  }
  *space = 0;
  if (!read_prompt(value, turn, failure)) return false;
  plan.turns.add(turn);
  return true;
}

bool add_cores(char* value, Plan& plan, Failure& failure) {
  for (char* at = value; at;) {
    char* comma = strchr(at, ',');
    if (comma) *comma = 0;
    long core;
    if (!parse_long(at, core) || core < 0 || core > 1023) return bad_value("cores", at, "a core's number", failure);
    plan.cores.add(core);
    at = comma ? comma + 1 : nullptr;
  }
  return true;
}

bool set_number(const NumberKey& key, const char* value, Plan& plan, Failure& failure) {
  const long lowest = key.lowest == kNeeded ? 1 : key.lowest;
  if (parse_long(value, plan.*key.field) && plan.*key.field >= lowest) return true;
  char wanted[40];
  snprintf(wanted, sizeof(wanted), "a whole number from %ld on", lowest);
  return bad_value(key.name, value, wanted, failure);
}

bool set_real(const char* key, const char* value, double& out, Failure& failure) {
  char* end = nullptr;
  out = strtod(value, &end);
  return (end != value && *end == 0 && out >= 0) || bad_value(key, value, "a number from 0 on", failure);
}

bool set_mode(const char* value, Plan& plan, Failure& failure) {
  for (int mode = kRepetitions; mode <= kConversation; ++mode) {
    if (strcmp(value, kModes[mode]) != 0) continue;
    plan.mode = static_cast<Mode>(mode);
    return true;
  }
  return bad_value("mode", value, "repetitions, sustained or conversation", failure);
}

bool set(const char* key, char* value, Plan& plan, Failure& failure) {
  for (const TextKey& known : kTexts) {
    if (strcmp(key, known.name) == 0) return plan.*known.field = value, true;
  }
  for (const NumberKey& known : kNumbers) {
    if (strcmp(key, known.name) == 0) return set_number(known, value, plan, failure);
  }
  if (strcmp(key, "kl_limit") == 0) return set_real(key, value, plan.kl_limit, failure);
  if (strcmp(key, "cv_gate") == 0) return set_real(key, value, plan.cv_gate, failure);
  if (strcmp(key, "mode") == 0) return set_mode(value, plan, failure);
  if (strcmp(key, "turn") == 0) return add_turn(value, plan, failure);
  if (strcmp(key, "cores") == 0) return add_cores(value, plan, failure);
  if (strcmp(key, "temperature") == 0) return plan.temperature.add(value), true;
  if (strcmp(key, "frequency") == 0) return plan.frequency.add(value), true;
  if (strcmp(key, "cap") == 0) return plan.cap.add(value), true;
  return fail(failure, "usage", "the plan has an unknown key '%.100s': is this runner older than its host?", key);
}

// What the lines can't say one by one.
bool check(const Plan& plan, Failure& failure) {
  for (const TextKey& key : kTexts) {
    if (key.needed && !(plan.*key.field)) return fail(failure, "usage", "the plan has no %s", key.name);
  }
  for (const NumberKey& key : kNumbers) {
    if (key.lowest == kNeeded && !(plan.*key.field)) return fail(failure, "usage", "the plan has no %s", key.name);
  }
  if (plan.kl_limit < 0) return fail(failure, "usage", "the plan has no kl_limit");
  if (plan.turns.size == 0) return fail(failure, "usage", "the plan has no turn");
  long needed = 0;
  for (const Turn& turn : plan.turns) {
    needed += turn.prompt_tokens + turn.generated;
    for (long i = 0; i < turn.prompt_tokens; ++i) {
      if (turn.prompt[i] >= 0 && turn.prompt[i] < plan.vocab) continue;
      return fail(failure, "usage", "a prompt has the token %ld, outside 0..%ld", turn.prompt[i], plan.vocab - 1);
    }
  }
  if (needed <= plan.context) return true;
  return fail(failure, "context", "%ld tokens don't fit in a context of %ld", needed, plan.context);
}

}  // namespace

bool read_plan(const char* path, Plan& plan, Failure& failure) {
  Text text;
  if (!read_file(path, text)) return fail(failure, "usage", "plan %.300s: %s", path, strerror(errno));
  bool first = true, good = true;
  for (char* line = text.data; line && *line;) {
    char* end = strchr(line, '\n');
    if (end) *end = 0;
    char* value = strchr(line, ' ');
    if (value) *value++ = 0;
    if (first && (!value || strcmp(line, "edge-plan") != 0 || strcmp(value, "1") != 0)) {
      return fail(failure, "usage", "%.300s is not a plan: its first line isn't 'edge-plan 1'", path);
    }
    if (!first && good) {  // later lines only for the digest, which a mistake is told under
      good = value ? set(line, value, plan, failure) : fail(failure, "usage", "the plan's %.100s has no value", line);
    } else if (!good && value && strcmp(line, "digest") == 0) {
      plan.digest = value;
    }
    first = false;
    line = end ? end + 1 : nullptr;
  }
  if (first) return fail(failure, "usage", "%.300s is empty", path);
  if (plan.most_repetitions < plan.repetitions) plan.most_repetitions = plan.repetitions;
  return good && check(plan, failure);
}

}  // namespace edge
