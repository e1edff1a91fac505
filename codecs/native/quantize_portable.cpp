#include "quantize_kernels.hpp"

namespace kvstore::quantize {

bool encode_portable(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    return encode_any(method, plane, elements, section);
}

bool decode_portable(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    return decode_any(method, plane, section, elements);
}

}  // namespace kvstore::quantize
