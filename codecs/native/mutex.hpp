// A lock that Python and native threads share. A native thread that holds it never waits for the interpreter's lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace kvstore {

class Mutex {
public:
    void lock() {
        mutex_.lock();
        held_.store(true, std::memory_order_relaxed);
    }
    bool try_lock() {
        if (!mutex_.try_lock()) return false;
        held_.store(true, std::memory_order_relaxed);
        return true;
    }
    void unlock() {
        held_.store(false, std::memory_order_relaxed);
        mutex_.unlock();
    }
    // How many threads wait on a condition of this lock, which guards the number.
    std::uint32_t awaited = 0;

    bool held() const { return held_.load(std::memory_order_relaxed); }

private:
    std::mutex mutex_;
    std::atomic<bool> held_ = false;
};

}  // namespace kvstore
