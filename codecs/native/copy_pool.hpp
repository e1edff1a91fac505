// Threads that help with one large copy.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace kvstore {

struct Piece {
    std::uint8_t* output;
    const std::uint8_t* input;
    std::size_t length;
};

// Copies pieces, of a copy of `whole` bytes, one after the other.
void copy_in_order(std::span<const Piece> pieces, std::size_t whole);

class CopyPool {
public:
    // Starts `helpers` threads, which sleep until they are needed.
    explicit CopyPool(unsigned helpers);
    ~CopyPool();
    CopyPool(const CopyPool&) = delete;
    CopyPool& operator=(const CopyPool&) = delete;

    unsigned helpers() const { return static_cast<unsigned>(threads_.size()); }

    // Copies all pieces, of a copy of `whole` bytes, on this thread and on helpers that are idle.
    void copy(std::span<const Piece> pieces, std::size_t whole);

private:
    struct Job {
        std::span<const Piece> pieces;
        std::size_t whole;
        std::atomic<std::size_t> next = 0;
        unsigned workers = 0;  // helpers on it
    };

    static void work(Job& job);
    void help();
    void retire(Job& job);

    std::mutex mutex_;
    std::condition_variable wanted_;
    std::condition_variable left_;
    std::deque<Job*> jobs_;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace kvstore
