// edge-runner PLAN JOURNAL: measures a model where there is no Python. kernels/README.md has the plan's keys.
#include "device.h"
#include "protocol.h"

namespace edge {
namespace {

// Exit codes are those of the `edge` command.
int exit_code(const char* code) {
  if (strcmp(code, "ok") == 0) return 0;
  if (strcmp(code, "usage") == 0) return 2;
  return strcmp(code, "parity") == 0 ? 4 : 1;
}

// As after a reboot: the graph, and the weights beside it.
void forget_model(const char* path) {
  Text weights;
  weights.add(path);
  weights.add(".data");
  drop_from_page_cache(path);
  drop_from_page_cache(weights.data);
  free(weights.data);
}

bool run(const Plan& plan, Model& model, Journal& journal, Done& done, Failure& failure) {
  forget_model(plan.model);
  if (!stay_on(plan.cores, failure)) return false;
  const long start = now_ns();
  if (!model.load(plan, failure)) return false;
  if (!journal.phase("load", start, now_ns(), 0, failure)) return false;
  Protocol protocol(plan, model, journal, done);
  if (plan.profile) return protocol.trace(failure);
  return protocol.check_parity(failure) && protocol.measure(failure);
}

// What can still be told of an end is told: in the journal, where that is open and has room, and on stderr.
int finish(Journal* journal, const Failure& how) {
  Failure untold;
  const bool told = !journal || journal->end(how, untold);
  if (!told && strcmp(untold.message, how.message) != 0) say(untold.message);
  if (*how.message) say(how.message);
  return exit_code(how.code);
}

int measure(const char* plan_path, const char* journal_path) {
  Failure failure;
  Plan plan;
  Done done;
  Journal journal;
  Model model;
  const bool planned = read_plan(plan_path, plan, failure);
  if (!plan.digest) return finish(nullptr, failure);
  Failure unopened;
  if (!journal.open(journal_path, plan, done, unopened)) {
    return finish(nullptr, planned ? unopened : failure);
  }
  if (done.over) return 0;
  const bool loaded = planned && model.load_library(plan.onnxruntime, failure);
  char boot[40];
  boot_id(boot);
  Failure unwritten;
  if (!journal.begin(plan.digest, boot, model.version(), unwritten)) return finish(nullptr, unwritten);
  if (loaded) {
    char engine[100];
    snprintf(engine, sizeof(engine), "ONNX Runtime %.40s, its telemetry off", model.version());
    say(engine);
    run(plan, model, journal, done, failure);
  }
  return finish(&journal, failure);
}

}  // namespace
}  // namespace edge

int main(int count, char** arguments) {
  if (count != 3) {
    edge::say("usage: edge-runner PLAN JOURNAL");
    _exit(2);
  }
  // Not by exit(): nothing is left to do, and what the engine's own threads still do can't spoil the exit code.
  _exit(edge::measure(arguments[1], arguments[2]));
}
