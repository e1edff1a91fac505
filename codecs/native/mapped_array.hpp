// An array of zero bytes whose pages come into being when they are first written.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>

namespace kvstore {

template <typename T>
class MappedArray {
    static_assert(std::is_trivially_copyable_v<T>, "the array begins as zero bytes");

public:
    explicit MappedArray(std::size_t length) : length_(length) {
        if (length == 0) return;
        if (length > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_alloc();
        void* mapped = mmap(nullptr, length * sizeof(T), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        items_ = static_cast<T*>(mapped);
        // Rows are reached at random. Only a wish: without huge pages everything works, more slowly. Not for the first
        // ones: a tenant has dozens of arrays in each tier, and most tenants few chunks.
        if (length * sizeof(T) > kSmall)
            madvise(static_cast<std::byte*>(mapped) + kSmall, length * sizeof(T) - kSmall, MADV_HUGEPAGE);
    }
    ~MappedArray() {
        if (items_ != nullptr) munmap(items_, length_ * sizeof(T));
    }
    MappedArray(const MappedArray&) = delete;
    MappedArray& operator=(const MappedArray&) = delete;

    T& operator[](std::size_t i) { return items_[i]; }
    const T& operator[](std::size_t i) const { return items_[i]; }
    std::size_t size() const { return length_; }

private:
    static constexpr std::size_t kSmall = std::size_t{2} << 20;

    T* items_ = nullptr;
    std::size_t length_;
};

}  // namespace kvstore
