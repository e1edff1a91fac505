// Appending a record to a log of the NVMe tier: the record into its segment, then its entry into the journal.
// kvstore/record.py and tiers/nvme/journal.py describe the formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

inline constexpr std::size_t kBlock = 4096;
inline constexpr std::size_t kEntryBytes = 192;

// Where a record goes and what its entry says.
struct LogPlace {
    int fd;
    std::uint64_t offset;
    std::uint64_t generation;
    std::uint64_t location;
    int journal_fd;
    std::uint64_t journal_offset;
    std::uint64_t sequence;
    std::uint8_t op;
};

enum class Stage { record, journal };

// How far it came, and the system's error number; 0 if all is written.
struct Outcome {
    Stage stage;
    int error;
};

// `header` is a packed one, which is sealed on the way; of `payload` `stored` bytes count. Zeros fill the last block,
// unless `payload` brings it whole. With O_DIRECT `payload` has to begin on a block boundary.
Outcome append_record(const LogPlace& place, std::span<const std::uint8_t> header,
                      std::span<const std::uint8_t> payload, std::size_t stored);

}  // namespace kvstore
