// cachegen's rows for AVX2: the same loops, which the compiler makes eight columns wide.
#if defined(__x86_64__)

#include "cachegen_rows.hpp"

namespace kvstore::cachegen {

namespace {

#define KVSTORE_ROWS_TARGET __attribute__((target("avx2")))
#include "cachegen_rows.inc"
#undef KVSTORE_ROWS_TARGET

}  // namespace

const Rows kAvx2Rows = {load, quantize, dequantize, store};

}  // namespace kvstore::cachegen

#endif
