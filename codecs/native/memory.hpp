// Where memory lies and what its pages are. Errors are values of errno, 0 for none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore {

struct MappedMemory {
    std::uint8_t* data;
    int error;
    bool synced;  // mapped with MAP_SYNC: what the processor has flushed is durable
};

// Maps the first `bytes` bytes of a file, shared, or without a file (-1) memory of this process alone, at a multiple
// of `alignment` (a power of two). Nothing is brought into being. `sync` asks for MAP_SYNC where the file has it.
MappedMemory map_memory(int fd, std::size_t bytes, std::size_t alignment, bool sync);

// Pages that come into being from now on lie on a NUMA node: `strict` on it or nowhere, else elsewhere if it is full.
int bind_to_node(std::uint8_t* data, std::size_t bytes, unsigned node, bool strict);
// The node of the page at `data`, which is brought into being.
int node_of(std::uint8_t* data, int& node);

// Asks for huge pages where pages come into being by themselves.
int advise_huge(std::uint8_t* data, std::size_t bytes);
// Makes huge pages of what is there, whatever the system's settings for that; EINVAL where the kernel cannot.
int collapse_huge(std::uint8_t* data, std::size_t bytes);
int lock_memory(std::uint8_t* data, std::size_t bytes);

}  // namespace kvstore
