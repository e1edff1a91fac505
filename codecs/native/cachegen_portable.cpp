// cachegen's rows without a target of their own.
#include "cachegen_rows.hpp"

namespace kvstore::cachegen {

namespace {

#define KVSTORE_ROWS_TARGET
#include "cachegen_rows.inc"
#undef KVSTORE_ROWS_TARGET

}  // namespace

const Rows kPortableRows = {load, quantize, dequantize, store};

}  // namespace kvstore::cachegen
