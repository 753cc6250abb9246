// The journal of a run: JSON lines as profiles/journal.py reads them, each on the disk before the run goes on.
#pragma once

#include "plan.h"

namespace edge {

struct Repetition {
  long index = 0, turn = 0, start_ns = 0, prompt_tokens = 0, prefill_ns = 0, cpu_ns = 0;
  const List<long>*decode_ns = nullptr, *frequency_khz = nullptr, *caps_khz = nullptr;
  const long* temperature_mc = nullptr;
  bool throttled = false;
};

// All turns of one repetition together.
struct Tally {
  long decoded = 0, decode_ns = 0, prompt_tokens = 0, prefill_ns = 0;
  bool throttled = false;

  void add(const Repetition& turn);
  double speed() const;  // tokens per second of the decode steps, or of the prefill where there are none
};

// What was done so far, also by an earlier process. speeds: of repetitions that count, throttled ones where sustained.
struct Done {
  bool over = false;            // it ended well: there is nothing to do
  bool last_throttled = false;  // the last repetition was
  bool has_temperature = false;
  long first_mc = 0;  // of the hottest zone when the first repetition began
  long repetitions = 0, measured_ns = 0;
  List<double> speeds;
  List<long> caps_khz;  // the highest of each core that an earlier process saw

  void add(const Tally& repetition, Mode mode);
};

class Journal {
 public:
  // Takes up the journal at `path`, or begins one. A repetition is whole with its last turn.
  bool open(const char* path, const Plan& plan, Done& done, Failure& failure);
  bool begin(const char* digest, const char* boot, const char* onnxruntime, Failure& failure);
  bool parity(double divergence, double limit, bool top1_equal, Failure& failure);
  bool phase(const char* name, long start_ns, long end_ns, long tokens, Failure& failure);
  bool repetition(const Repetition& repetition, Failure& failure);
  bool peak(long bytes, Failure& failure);
  bool end(const Failure& how, Failure& failure);

 private:
  bool take_up(Text& text, const Plan& plan, Done& done, Failure& failure);
  Text& entry(const char* type);
  bool write_line(Failure& failure);

  int fd_ = -1;
  long seq_ = 0;
  const char* path_ = "";
  Text line_;
};

}  // namespace edge
