#include "protocol.h"

#include "device.h"

namespace edge {
namespace {

constexpr long kPoll_ns = 500000000, kMargin_mc = 5000;  // as profiles/cooling.py, which says why
constexpr size_t kLanes = 16;

// The first of the largest, as NumPy picks it.
int64_t argmax(const float* values, long count) {
  float best[kLanes];
  for (float& lane : best) lane = values[0];
  const long whole = count - count % static_cast<long>(kLanes);
  for (long i = 0; i < whole; i += static_cast<long>(kLanes)) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + static_cast<long>(lane)];
      best[lane] = best[lane] > value ? best[lane] : value;
    }
  }
  float most = best[0];
  for (const float value : best) most = most > value ? most : value;
  for (long i = whole; i < count; ++i) most = most > values[i] ? most : values[i];
  long at = 0;
  while (at < count - 1 && !(values[at] == most)) ++at;
  return at;
}

// log of the sum of exp, over which a softmax is taken.
double log_sum(const float* logits, long count) {
  double most = logits[0], sum = 0;
  for (long i = 1; i < count; ++i) most = most > logits[i] ? most : logits[i];
  for (long i = 0; i < count; ++i) sum += exp(logits[i] - most);
  return most + log(sum);
}

// KL(expected || got) in nats.
double divergence(const float* expected, const float* got, long count) {
  const double of_expected = log_sum(expected, count), of_got = log_sum(got, count);
  double sum = 0;
  for (long i = 0; i < count; ++i) {
    const double log_p = expected[i] - of_expected;
    sum += exp(log_p) * (log_p - (got[i] - of_got));
  }
  return sum;
}

double square_root(double x) {
  double root = x > 1 ? x : 1;
  for (int i = 0; i < 60; ++i) root = (root + x / root) / 2;
  return root;
}

// Standard deviation over mean.
double variation(const double* values, size_t count) {
  double mean = 0, squares = 0;
  for (size_t i = 0; i < count; ++i) mean += values[i] / static_cast<double>(count);
  for (size_t i = 0; i < count; ++i) squares += (values[i] - mean) * (values[i] - mean);
  return count > 1 && mean > 0 ? square_root(squares / static_cast<double>(count - 1)) / mean : 0;
}

}  // namespace

bool Protocol::check_parity(Failure& failure) {
  Text samples;
  if (!read_file(plan_.samples, samples)) {
    return fail(failure, "usage", "samples %.300s: %s", plan_.samples, strerror(errno));
  }
  const auto* sizes = reinterpret_cast<const int64_t*>(samples.data);
  const bool has_sizes = samples.size >= 2 * sizeof(int64_t);
  if (!has_sizes || sizes[0] < 1 || sizes[0] > plan_.context || sizes[1] != plan_.vocab ||
      samples.size != static_cast<size_t>(16 + 8 * sizes[0] + 4 * sizes[1])) {
    return fail(failure, "usage", "samples %.300s are damaged, or of another model", plan_.samples);
  }
  const int64_t* tokens = sizes + 2;
  const auto* expected = reinterpret_cast<const float*>(tokens + sizes[0]);
  model_.rewind();
  if (!model_.feed(tokens, sizes[0], failure)) return false;
  const double found = divergence(expected, model_.logits(), plan_.vocab);
  const bool top1_equal = argmax(expected, plan_.vocab) == argmax(model_.logits(), plan_.vocab);
  free(samples.data);
  if (!__builtin_isfinite(found)) return fail(failure, "parity", "the model's logits are no numbers: it is damaged");
  if (!journal_.parity(found, plan_.kl_limit, top1_equal, failure)) return false;
  if (found <= plan_.kl_limit) return true;
  const char* form = "the model doesn't say here what it said when exported: KL divergence %.3g nats, limit %.3g";
  return fail(failure, "parity", form, found, plan_.kl_limit);
}

bool Protocol::measure(Failure& failure) {
  read_numbers(plan_.cap, caps_khz_);
  for (size_t i = 0; i < caps_khz_.size && i < done_.caps_khz.size; ++i) {  // of a run that is taken up
    if (done_.caps_khz.data[i] > caps_khz_.data[i]) caps_khz_.data[i] = done_.caps_khz.data[i];
  }
  const long warming = now_ns();
  for (long i = 0; i < plan_.warm_ups; ++i) {
    if (!converse(failure)) return false;
  }
  if (!journal_.phase("warm-up", warming, now_ns(), 0, failure)) return false;
  if (enough()) return journal_.peak(peak_bytes(), failure);  // taken up after its last repetition
  if (!rest("idle before", plan_.idle_ns, failure)) return false;
  for (bool first = true; !enough(); first = false) {
    long hottest = 0;
    if (!pause(first, failure)) return false;
    const bool told = hottest_mc(plan_.temperature, hottest);
    if (done_.repetitions == 0) done_.has_temperature = told, done_.first_mc = hottest;
    if (!converse(failure) || !tell(told ? &hottest : nullptr, failure)) return false;
  }
  return rest("idle after", plan_.idle_ns, failure) && journal_.peak(peak_bytes(), failure) && keep_made(failure);
}

// Greedy: the most probable token follows.
void Protocol::pick() {
  made_.add(argmax(model_.logits(), plan_.vocab));
}

// So that whoever asks can hold them against those of another engine.
bool Protocol::keep_made(Failure& failure) const {
  if (!plan_.generated) return true;
  const int fd = open(plan_.generated, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const size_t bytes = made_.size * sizeof(int64_t);
  const bool good = fd >= 0 && write(fd, made_.data, bytes) == static_cast<ssize_t>(bytes);
  if (fd >= 0) close(fd);
  return good || fail(failure, "disk", "tokens %.300s: %s", plan_.generated, strerror(errno));
}

// Steady is a sustained run whose last speeds, twice as many as there are repetitions, vary by no more than the gate.
bool Protocol::enough() const {
  const long taken = done_.measured_ns;
  const size_t least = static_cast<size_t>(plan_.repetitions);
  if (plan_.mode == kSustained) {
    if (plan_.most_ns && taken >= plan_.most_ns) return true;
    if (done_.speeds.size < 2 * least || taken < plan_.min_ns) return false;
    return variation(done_.speeds.end() - 2 * least, 2 * least) <= plan_.cv_gate;
  }
  if (done_.repetitions >= plan_.most_repetitions) return true;
  if (done_.speeds.size < least || taken < plan_.min_ns) return false;
  return variation(done_.speeds.data, done_.speeds.size) <= plan_.cv_gate;
}

bool Protocol::converse(Failure& failure) {
  model_.rewind();
  made_.size = 0;
  for (const Turn& turn : plan_.turns) made_.reserve(static_cast<size_t>(turn.generated));
  turns_.reserve(plan_.turns.size);
  for (; turns_.size < plan_.turns.size;) turns_.add(Measured());
  for (size_t i = 0; i < plan_.turns.size; ++i) {
    if (!turn(plan_.turns.data[i], i == 0, turns_.data[i], failure)) return false;
  }
  return true;
}

// Each time runs until the next token is picked. A later turn also reads the last token that the one before it made.
bool Protocol::turn(const Turn& turn, bool first, Measured& out, Failure& failure) {
  prompt_.size = out.decode_ns.size = 0;
  if (!first) prompt_.add(made_.data[made_.size - 1]);
  for (long i = 0; i < turn.prompt_tokens; ++i) prompt_.add(turn.prompt[i]);
  out.decode_ns.reserve(static_cast<size_t>(turn.generated));
  out.prompt_tokens = static_cast<long>(prompt_.size);
  watch_caps(out, true);
  const long cpu = cpu_ns();
  out.start_ns = now_ns();
  if (!model_.feed(prompt_.data, out.prompt_tokens, failure)) return false;
  pick();
  long before = now_ns();
  out.prefill_ns = before - out.start_ns;
  for (long i = 1; i < turn.generated; ++i) {
    if (!model_.feed(made_.end() - 1, 1, failure)) return false;
    pick();
    const long after = now_ns();
    out.decode_ns.add(after - before);
    before = after;
  }
  out.cpu_ns = cpu_ns() - cpu;
  if (!read_numbers(plan_.frequency, out.frequency_khz)) out.frequency_khz.size = 0;
  watch_caps(out, false);
  return true;
}

// The lowest cap of each core when a turn begins and when it ends, and whether one was lower than when the run began.
void Protocol::watch_caps(Measured& out, bool begins) {
  List<long> now;
  const bool told = read_numbers(plan_.cap, now);
  if (begins) out.caps_khz.size = 0, out.throttled = false;
  for (size_t i = 0; told && i < now.size; ++i) {
    if (begins) out.caps_khz.add(now.data[i]);
    if (i < out.caps_khz.size && now.data[i] < out.caps_khz.data[i]) out.caps_khz.data[i] = now.data[i];
    out.throttled = out.throttled || (i < caps_khz_.size && now.data[i] < caps_khz_.data[i]);
  }
  free(now.data);
}

// Writes a whole repetition at once, so that nothing between its turns waits for the disk.
bool Protocol::tell(const long* temperature_mc, Failure& failure) {
  Tally tally;
  for (size_t i = 0; i < turns_.size; ++i) {
    const Measured& turn = turns_.data[i];
    const long picked = turn.start_ns + turn.prefill_ns;
    long end = picked;
    for (const long ns : turn.decode_ns) end += ns;
    Repetition told;
    told.index = done_.repetitions;
    told.turn = static_cast<long>(i);
    told.start_ns = turn.start_ns;
    told.prompt_tokens = turn.prompt_tokens;
    told.prefill_ns = turn.prefill_ns;
    told.cpu_ns = turn.cpu_ns;
    told.decode_ns = &turn.decode_ns;
    told.frequency_khz = &turn.frequency_khz;
    told.caps_khz = &turn.caps_khz;
    told.throttled = turn.throttled;
    told.temperature_mc = temperature_mc;
    if (!journal_.phase("prefill", turn.start_ns, picked, turn.prompt_tokens, failure) ||
        !journal_.phase("decode", picked, end, static_cast<long>(turn.decode_ns.size), failure) ||
        !journal_.repetition(told, failure)) {
      return false;
    }
    tally.add(told);
  }
  done_.add(tally, plan_.mode);
  return true;
}

bool Protocol::rest(const char* name, long ns, Failure& failure) {
  if (ns == 0) return true;
  const long start = now_ns();
  sleep_ns(ns);
  return journal_.phase(name, start, now_ns(), 0, failure);
}

// What the plan asks for before a repetition; after a throttled one until the device has recovered.
bool Protocol::pause(bool first, Failure& failure) {
  if (plan_.mode == kSustained && !first) return true;
  if (!first && !rest("cool-down", plan_.cool_down_ns, failure)) return false;
  if (plan_.mode != kSustained && done_.last_throttled && !wait_until([&] { return recovered(); }, failure)) {
    return false;
  }
  return wait_until([&] { return cool_enough(); }, failure);
}

template <class Ready>
bool Protocol::wait_until(Ready ready, Failure& failure) {
  if (ready()) return true;
  const long start = now_ns();
  long left = plan_.wait_ns;
  for (; left > 0 && !ready(); left = plan_.wait_ns - (now_ns() - start)) sleep_ns(left < kPoll_ns ? left : kPoll_ns);
  return journal_.phase("wait", start, now_ns(), 0, failure);
}

bool Protocol::cool_enough() const {
  long hottest;
  return plan_.start_below_mc == 0 || !hottest_mc(plan_.temperature, hottest) || hottest < plan_.start_below_mc;
}

// The caps are back, and it is about as cool as when the run began.
bool Protocol::recovered() const {
  long hottest;
  if (done_.has_temperature && hottest_mc(plan_.temperature, hottest) && hottest > done_.first_mc + kMargin_mc) {
    return false;
  }
  List<long> now;
  bool lowered = false;
  const bool told = read_numbers(plan_.cap, now);
  for (size_t i = 0; told && i < now.size && i < caps_khz_.size; ++i) {
    lowered = lowered || now.data[i] < caps_khz_.data[i];
  }
  free(now.data);
  return !lowered;
}

bool Protocol::trace(Failure& failure) {
  model_.rewind();
  const Turn& turn = plan_.turns.data[0];
  for (long i = 0; i < turn.prompt_tokens; ++i) {  // one by one too, so that the context is a real one
    if (!model_.feed(turn.prompt + i, 1, failure)) return false;
  }
  for (long i = 1; i < turn.generated; ++i) {
    pick();
    if (!model_.feed(made_.end() - 1, 1, failure)) return false;
  }
  return model_.end_profile(plan_.profile, failure);
}

}  // namespace edge
