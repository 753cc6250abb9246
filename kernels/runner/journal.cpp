#include "journal.h"

#include "device.h"

namespace edge {
namespace {

const char* after(const char* line, const char* key) {
  const char* found = strstr(line, key);
  return found ? found + strlen(key) : nullptr;
}

long number(const char* line, const char* key) {
  const char* at = after(line, key);
  return at ? strtol(at, nullptr, 10) : 0;
}

bool starts(const char* line, const char* with) {
  return strncmp(line, with, strlen(with)) == 0;
}

void numbers(const char* line, const char* key, List<long>& out) {
  out.size = 0;
  char* end = nullptr;
  for (const char* at = after(line, key); at && *at && *at != ']'; at = *end == ',' ? end + 1 : end) {
    out.add(strtol(at, &end, 10));
    if (end == at) return;
  }
}

void add_list(Text& text, const char* key, const List<long>& values) {
  text.add(key);
  for (size_t i = 0; i < values.size; ++i) {
    if (i) text.add(",");
    text.add(values.data[i]);
  }
  text.add("]");
}

// Whether a run's begin is of the plan with this digest.
bool is_of(const char* line, const char* digest) {
  const char* plan = after(line, "\"plan\":\"");
  return plan && starts(plan, digest) && plan[strlen(digest)] == '"';
}

// A turn that was finished before. The turns of a repetition that was cut off are counted anew with its next first one.
void count(const char* line, const Plan& plan, Tally& tally, Done& done) {
  Repetition told;
  List<long> decode_ns, caps_khz;
  numbers(line, "\"decode_ns\":[", decode_ns);
  numbers(line, "\"caps_khz\":[", caps_khz);
  told.turn = number(line, "\"turn\":");
  told.prompt_tokens = number(line, "\"prompt_tokens\":");
  told.prefill_ns = number(line, "\"prefill_ns\":");
  told.throttled = strstr(line, "\"throttled\":true");
  told.decode_ns = &decode_ns;
  if (told.turn == 0) tally = Tally();
  if (done.repetitions == 0 && (done.has_temperature = after(line, "\"temperature_mc\":"))) {
    done.first_mc = number(line, "\"temperature_mc\":");
  }
  tally.add(told);
  for (size_t i = 0; i < caps_khz.size; ++i) {
    if (i == done.caps_khz.size) done.caps_khz.add(0);
    if (caps_khz.data[i] > done.caps_khz.data[i]) done.caps_khz.data[i] = caps_khz.data[i];
  }
  if (told.turn + 1 == static_cast<long>(plan.turns.size)) done.add(tally, plan.mode);
  free(decode_ns.data);
  free(caps_khz.data);
}

// Where the whole lines end. What is left of a line that was never finished doesn't count.
size_t whole_lines(const Text& text) {
  size_t end = text.size;
  while (end && text.data[end - 1] != '\n') --end;
  return end;
}

}  // namespace

void Tally::add(const Repetition& turn) {
  decoded += static_cast<long>(turn.decode_ns->size);
  for (const long ns : *turn.decode_ns) decode_ns += ns;
  prompt_tokens += turn.prompt_tokens;
  prefill_ns += turn.prefill_ns;
  throttled = throttled || turn.throttled;
}

double Tally::speed() const {
  const bool decodes = decode_ns > 0;
  const double ns = static_cast<double>(decodes ? decode_ns : prefill_ns);
  return ns > 0 ? static_cast<double>(decodes ? decoded : prompt_tokens) / (ns / 1e9) : 0;
}

void Done::add(const Tally& repetition, Mode mode) {
  ++repetitions;
  measured_ns += repetition.prefill_ns + repetition.decode_ns;
  last_throttled = repetition.throttled;
  if (!repetition.throttled || mode == kSustained) speeds.add(repetition.speed());
}

bool Journal::open(const char* path, const Plan& plan, Done& done, Failure& failure) {
  path_ = path;
  fd_ = ::open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) return fail(failure, "disk", "journal %.300s: %s", path, strerror(errno));
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return fail(failure, "usage", "journal %.300s is being written by another run", path);
  }
  if (lseek(fd_, 0, SEEK_END) <= 0) return true;  // new, or what has no end
  Text text;
  if (!read_file(path, text)) return fail(failure, "disk", "journal %.300s: %s", path, strerror(errno));
  const bool good = take_up(text, plan, done, failure);
  free(text.data);
  return good;
}

bool Journal::take_up(Text& text, const Plan& plan, Done& done, Failure& failure) {
  const size_t whole = whole_lines(text);
  text.data[whole] = 0;
  Tally tally;
  for (char *line = text.data, *end; *line; line = end + 1) {
    end = strchr(line, '\n');
    *end = 0;
    if (!starts(line, "{\"type\":\"") || !after(line, "\"seq\":")) {
      return fail(failure, "usage", "journal %.300s is damaged, or is something else", path_);
    }
    seq_ = number(line, "\"seq\":") + 1;
    done.over = starts(line, "{\"type\":\"end\"") && strstr(line, "\"code\":\"ok\"");
    if (starts(line, "{\"type\":\"begin\"") && !is_of(line, plan.digest)) {
      return fail(failure, "usage", "journal %.300s belongs to another plan", path_);
    }
    if (starts(line, "{\"type\":\"repetition\"")) count(line, plan, tally, done);
  }
  if (ftruncate(fd_, static_cast<off_t>(whole)) == 0) return true;
  return fail(failure, "disk", "journal %.300s: %s", path_, strerror(errno));
}

Text& Journal::entry(const char* type) {
  line_.clear();
  line_.add("{\"type\":\"");
  line_.add(type);
  line_.add("\",\"seq\":");
  line_.add(seq_);
  return line_;
}

bool Journal::write_line(Failure& failure) {
  line_.add("}\n");
  const off_t before = lseek(fd_, 0, SEEK_END);
  const ssize_t written = write(fd_, line_.data, line_.size);
  const bool whole = written == static_cast<ssize_t>(line_.size);
  const int error = written < 0 ? errno : ENOSPC;  // a full disk takes a part and says why at the next try
  if (whole && (fsync(fd_) == 0 || errno == EINVAL || errno == EROFS)) {  // a pipe or /dev/null can't be synced
    ++seq_;
    return true;
  }
  const int reason = whole ? errno : error;
  if (before >= 0 && ftruncate(fd_, before) != 0) say("the journal's last line is torn");
  return fail(failure, "disk", "journal %.300s: %s", path_, strerror(reason));
}

bool Journal::begin(const char* digest, const char* boot, const char* onnxruntime, Failure& failure) {
  Text& line = entry("begin");
  line.add(",\"at_ns\":");
  line.add(now_ns());
  line.add(",\"plan\":");
  line.add_quoted(digest);
  line.add(",\"engine\":\"runner\",\"pid\":");
  line.add(static_cast<long>(getpid()));
  line.add(",\"boot\":");
  line.add_quoted(boot);
  line.add(",\"versions\":{");
  if (onnxruntime) {
    line.add("\"onnxruntime\":");
    line.add_quoted(onnxruntime);
  }
  line.add("}");
  return write_line(failure);
}

bool Journal::parity(double divergence, double limit, bool top1_equal, Failure& failure) {
  Text& line = entry("parity");
  line.add(",\"kl_divergence\":");
  line.add(divergence);
  line.add(",\"kl_divergence_limit\":");
  line.add(limit);
  line.add(top1_equal ? ",\"top1_equal\":true" : ",\"top1_equal\":false");
  return write_line(failure);
}

bool Journal::phase(const char* name, long start_ns, long end_ns, long tokens, Failure& failure) {
  Text& line = entry("phase");
  line.add(",\"name\":");
  line.add_quoted(name);
  line.add(",\"start_ns\":");
  line.add(start_ns);
  line.add(",\"end_ns\":");
  line.add(end_ns);
  line.add(",\"tokens\":");
  line.add(tokens);
  return write_line(failure);
}

bool Journal::repetition(const Repetition& told, Failure& failure) {
  Text& line = entry("repetition");
  const struct {
    const char* key;
    long value;
  } fields[] = {
      {",\"index\":", told.index},           {",\"turn\":", told.turn},
      {",\"start_ns\":", told.start_ns},     {",\"prompt_tokens\":", told.prompt_tokens},
      {",\"prefill_ns\":", told.prefill_ns}, {",\"cpu_ns\":", told.cpu_ns},
  };
  for (const auto& field : fields) {
    line.add(field.key);
    line.add(field.value);
  }
  add_list(line, ",\"decode_ns\":[", *told.decode_ns);
  add_list(line, ",\"frequency_khz\":[", *told.frequency_khz);
  add_list(line, ",\"caps_khz\":[", *told.caps_khz);
  line.add(told.throttled ? ",\"throttled\":true" : ",\"throttled\":false");
  if (told.temperature_mc) {
    line.add(",\"temperature_mc\":");
    line.add(*told.temperature_mc);
  }
  return write_line(failure);
}

bool Journal::peak(long bytes, Failure& failure) {
  Text& line = entry("peak");
  line.add(",\"peak_bytes\":");
  line.add(bytes);
  return write_line(failure);
}

bool Journal::end(const Failure& how, Failure& failure) {
  Text& line = entry("end");
  line.add(",\"at_ns\":");
  line.add(now_ns());
  line.add(",\"code\":");
  line.add_quoted(how.code);
  line.add(",\"message\":");
  line.add_quoted(how.message);
  return write_line(failure);
}

}  // namespace edge
