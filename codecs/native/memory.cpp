#include "memory.hpp"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace kvstore {

namespace {

constexpr unsigned kMaxNodes = 1024;
constexpr unsigned kWordBits = 8 * sizeof(unsigned long);

int flags_for(int fd, std::size_t bytes, bool sync) {
    if (fd < 0) return MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (!sync) return MAP_SHARED;
    // Tried at an address of the kernel's choice: a MAP_FIXED that fails may leave a hole that others map into.
    void* tried = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
    if (tried == MAP_FAILED) return MAP_SHARED;
    munmap(tried, bytes);
    return MAP_SHARED_VALIDATE | MAP_SYNC;
}

}  // namespace

MappedMemory map_memory(int fd, std::size_t bytes, std::size_t alignment, bool sync) {
    if (bytes == 0 || alignment == 0 || (alignment & (alignment - 1)) != 0 || bytes + alignment < bytes)
        return {nullptr, EINVAL, false};
    const int flags = flags_for(fd, bytes, sync);
    const std::size_t reserved = bytes + alignment;
    void* space = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return {nullptr, errno, false};
    auto* begin = static_cast<std::uint8_t*>(space);
    const std::size_t before = (alignment - reinterpret_cast<std::uintptr_t>(begin) % alignment) % alignment;
    void* data = mmap(begin + before, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
    if (data == MAP_FAILED) {
        const int error = errno;
        munmap(begin, reserved);
        return {nullptr, error, false};
    }
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t end = before + (bytes + page - 1) / page * page;
    if (before > 0) munmap(begin, before);
    if (end < reserved) munmap(begin + end, reserved - end);
    return {static_cast<std::uint8_t*>(data), 0, (flags & MAP_SYNC) != 0};
}

int bind_to_node(std::uint8_t* data, std::size_t bytes, unsigned node, bool strict) {
    if (node >= kMaxNodes) return EINVAL;
    std::array<unsigned long, kMaxNodes / kWordBits> nodes{};
    nodes[node / kWordBits] = 1UL << (node % kWordBits);
    const long done = syscall(SYS_mbind, data, bytes, strict ? MPOL_BIND : MPOL_PREFERRED, nodes.data(),
                              static_cast<unsigned long>(kMaxNodes), 0U);
    return done == 0 ? 0 : errno;
}

int node_of(std::uint8_t* data, int& node) {
    __atomic_fetch_add(data, 0, __ATOMIC_RELAXED);
    const long done = syscall(SYS_get_mempolicy, &node, nullptr, 0UL, data, MPOL_F_NODE | MPOL_F_ADDR);
    return done == 0 ? 0 : errno;
}

int advise_huge(std::uint8_t* data, std::size_t bytes) {
    return madvise(data, bytes, MADV_HUGEPAGE) == 0 ? 0 : errno;
}

int collapse_huge(std::uint8_t* data, std::size_t bytes) {
    return madvise(data, bytes, MADV_COLLAPSE) == 0 ? 0 : errno;
}

int lock_memory(std::uint8_t* data, std::size_t bytes) { return mlock(data, bytes) == 0 ? 0 : errno; }

}  // namespace kvstore
