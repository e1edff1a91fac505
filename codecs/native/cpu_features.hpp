// What __builtin_cpu_supports cannot be asked on every compiler.
#pragma once

#if defined(__x86_64__)

#include <cpuid.h>

namespace kvstore {

// Clang before 16 does not know this one's name.
inline bool cpu_has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace kvstore

#endif
