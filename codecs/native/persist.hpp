// Memory that survives the process and, mapped with MAP_SYNC, power loss.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore {

// Writes the lines of a range from the cache back to memory.
void write_back(const std::uint8_t* data, std::size_t length);

// What was stored, streamed or written back before comes before whatever is stored from here on.
void drain();

}  // namespace kvstore
