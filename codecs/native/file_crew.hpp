// Work on a file system that may hang, done by threads that whoever waits for them can leave.
//
// A thread in a system call on a hung network file system cannot be stopped, only left. So every call is a task that a
// thread of the crew works on; a caller that is out of time abandons the task and goes. Work that touches the
// caller's memory does so under the task's lock and only while it is not abandoned. A thread that was left counts as
// hung until its call returns, and another one takes its place, up to a limit.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace kvstore {

class FileTask {
public:
    explicit FileTask(std::function<void(FileTask&)> work) : work_(std::move(work)) {}

    // For the work itself: `use` runs while the caller waits, who does not leave before it returns. False, and nothing
    // was done, if the caller has left.
    template <typename Use>
    bool while_awaited(Use use) {
        const std::lock_guard lock(mutex_);
        if (abandoned_) return false;
        use();
        return true;
    }

private:
    friend class FileCrew;
    std::function<void(FileTask&)> work_;
    std::mutex mutex_;
    std::condition_variable ended_;
    bool finished_ = false;
    bool abandoned_ = false;
    bool running_ = false;   // guarded by the crew's lock, as is the next
    bool counted_ = false;  // as hung
};

class FileCrew {
public:
    using Clock = std::chrono::steady_clock;

    // At most `threads` at work, and `spare` more in the place of those that hang.
    FileCrew(std::size_t threads, std::size_t spare);
    ~FileCrew() { close(); }
    FileCrew(const FileCrew&) = delete;
    FileCrew& operator=(const FileCrew&) = delete;

    void start(std::shared_ptr<FileTask> task);
    // False if it had not ended by then: it is abandoned.
    bool wait(FileTask& task, Clock::time_point end);
    // Waits for what is at work and not hung; what waits is abandoned.
    void close();
    std::size_t threads() const { return threads_; }
    std::size_t hung() const;

private:
    struct Shared;
    static void serve(const std::shared_ptr<Shared>& shared);
    static void grow(const std::shared_ptr<Shared>& shared);

    const std::size_t threads_;
    std::shared_ptr<Shared> shared_;
};

}  // namespace kvstore
