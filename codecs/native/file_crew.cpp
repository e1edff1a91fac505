#include "file_crew.hpp"

#include <csignal>
#include <pthread.h>
#include <system_error>
#include <thread>

namespace kvstore {

// Outlives the crew for as long as a thread hangs.
struct FileCrew::Shared {
    std::mutex mutex;
    std::condition_variable work;
    std::condition_variable ended;
    std::deque<std::shared_ptr<FileTask>> waiting;
    std::size_t limit = 0;
    std::size_t spare = 0;
    std::size_t alive = 0;
    std::size_t idle = 0;
    std::size_t hung = 0;
    bool closed = false;
};

FileCrew::FileCrew(std::size_t threads, std::size_t spare) : threads_(threads), shared_(std::make_shared<Shared>()) {
    shared_->limit = threads;
    shared_->spare = spare;
}

std::size_t FileCrew::hung() const {
    const std::lock_guard lock(shared_->mutex);
    return shared_->hung;
}

void FileCrew::start(std::shared_ptr<FileTask> task) {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->closed) return;
    shared_->waiting.push_back(std::move(task));
    shared_->work.notify_one();
    grow(shared_);
}

// With the lock held: a thread more, if there is work for it.
void FileCrew::grow(const std::shared_ptr<Shared>& shared) {
    const bool may = shared->alive - shared->hung < shared->limit && shared->alive < shared->limit + shared->spare;
    if (shared->closed || !may || shared->waiting.size() <= shared->idle) return;
    // Signals are the interpreter's main thread's.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        std::thread(serve, shared).detach();
        ++shared->alive;
    } catch (const std::system_error&) {
        // The threads that there are will come to it, or its caller's time ends.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool FileCrew::wait(FileTask& task, Clock::time_point end) {
    {
        std::unique_lock lock(task.mutex_);
        if (task.ended_.wait_until(lock, end, [&] { return task.finished_; })) return true;
        task.abandoned_ = true;
    }
    const std::lock_guard lock(shared_->mutex);
    if (task.running_ && !task.counted_) {
        task.counted_ = true;
        ++shared_->hung;
        shared_->ended.notify_all();
    }
    std::erase_if(shared_->waiting, [&](const auto& each) { return each.get() == &task; });
    grow(shared_);
    return false;
}

void FileCrew::serve(const std::shared_ptr<Shared>& shared) {
    std::unique_lock lock(shared->mutex);
    while (!shared->closed && shared->alive - shared->hung <= shared->limit) {
        if (shared->waiting.empty()) {
            ++shared->idle;
            shared->work.wait(lock);
            --shared->idle;
            continue;
        }
        const std::shared_ptr<FileTask> task = std::move(shared->waiting.front());
        shared->waiting.pop_front();
        task->running_ = true;
        lock.unlock();
        task->work_(*task);
        {
            const std::lock_guard ending(task->mutex_);
            task->finished_ = true;
        }
        task->ended_.notify_all();
        lock.lock();
        task->running_ = false;
        if (task->counted_) --shared->hung;
    }
    --shared->alive;
    shared->ended.notify_all();
}

void FileCrew::close() {
    std::unique_lock lock(shared_->mutex);
    shared_->closed = true;
    shared_->waiting.clear();
    shared_->work.notify_all();
    shared_->ended.wait(lock, [&] { return shared_->alive <= shared_->hung; });
}

}  // namespace kvstore
