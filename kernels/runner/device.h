// What the operating system tells, and what is asked of it.
#pragma once

#include "text.h"

namespace edge {

long now_ns();  // of the monotonic clock
long cpu_ns();  // that this process has used on all cores
void sleep_ns(long ns);

// The first whole number in a small file, one per path. False where one can't be read: then nobody tells.
bool read_numbers(const List<const char*>& paths, List<long>& out);

// The highest of the zones that can be read and make sense, in 1/1000 °C. False where there is none.
bool hottest_mc(const List<const char*>& paths, long& out);

// Keep this process, and the threads that it will start, on these cores.
bool stay_on(const List<long>& cores, Failure& failure);

// Ask the kernel to forget a file, as after a reboot. It may decline; loading is then warm. False: it can't be read.
bool drop_from_page_cache(const char* path);

long peak_bytes();              // VmHWM of this process, 0 where nobody tells
void boot_id(char (&out)[40]);  // empty where nobody tells

}  // namespace edge
