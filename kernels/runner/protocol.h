// How a model is measured: as profiles/protocol.py does it, one journal entry after the other.
#pragma once

#include "journal.h"
#include "model.h"

namespace edge {

class Protocol {
 public:
  Protocol(const Plan& plan, Model& model, Journal& journal, Done& done)
      : plan_(plan), model_(model), journal_(journal), done_(done) {}

  bool check_parity(Failure& failure);
  bool measure(Failure& failure);
  bool trace(Failure& failure);  // single-token steps for the engine's own profile, untimed

 private:
  struct Measured {
    long start_ns, prompt_tokens, prefill_ns, cpu_ns;
    List<long> decode_ns, frequency_khz, caps_khz;
    bool throttled;
  };
  bool converse(Failure& failure);
  void pick();
  bool keep_made(Failure& failure) const;
  bool turn(const Turn& turn, bool first, Measured& out, Failure& failure);
  bool tell(const long* temperature_mc, Failure& failure);
  bool rest(const char* name, long ns, Failure& failure);
  bool pause(bool first, Failure& failure);
  template <class Ready>
  bool wait_until(Ready ready, Failure& failure);
  bool cool_enough() const;
  bool recovered() const;
  bool enough() const;
  void watch_caps(Measured& out, bool begins);

  const Plan& plan_;
  Model& model_;
  Journal& journal_;
  Done& done_;
  List<Measured> turns_;  // of the repetition that runs
  List<int64_t> prompt_;
  List<long> caps_khz_;  // as they were when the run began
  List<int64_t> made_;   // in the last conversation
};

}  // namespace edge
