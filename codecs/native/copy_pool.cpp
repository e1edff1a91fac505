#include "copy_pool.hpp"

#include "copy.hpp"

#include <algorithm>

namespace kvstore {

void copy_in_order(std::span<const Piece> pieces, std::size_t whole) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        if (i + 1 < pieces.size()) expect_copy_from(pieces[i + 1].input);
        copy_piece(pieces[i].output, pieces[i].input, pieces[i].length, whole);
    }
    end_copy();
}

CopyPool::CopyPool(unsigned helpers) {
    threads_.reserve(helpers);
    for (unsigned i = 0; i < helpers; ++i) threads_.emplace_back([this] { help(); });
}

CopyPool::~CopyPool() {
    {
        const std::lock_guard held(mutex_);
        stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& each : threads_) each.join();
}

void CopyPool::work(Job& job) {
    for (std::size_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.pieces.size();) {
        const Piece& piece = job.pieces[i];
        copy_piece(piece.output, piece.input, piece.length, job.whole);
    }
    end_copy();
}

void CopyPool::retire(Job& job) {
    const auto found = std::find(jobs_.begin(), jobs_.end(), &job);
    if (found != jobs_.end()) jobs_.erase(found);
}

void CopyPool::copy(std::span<const Piece> pieces, std::size_t whole) {
    Job job{.pieces = pieces, .whole = whole};
    if (threads_.empty() || pieces.size() < 2) return copy_in_order(pieces, whole);
    {
        const std::lock_guard held(mutex_);
        jobs_.push_back(&job);
    }
    pieces.size() > 2 ? wanted_.notify_all() : wanted_.notify_one();
    work(job);
    std::unique_lock held(mutex_);
    retire(job);  // nobody begins any more
    left_.wait(held, [&] { return job.workers == 0; });
}

void CopyPool::help() {
    std::unique_lock held(mutex_);
    while (true) {
        wanted_.wait(held, [&] { return stopping_ || !jobs_.empty(); });
        if (stopping_) return;
        Job& job = *jobs_.front();
        ++job.workers;
        held.unlock();
        work(job);
        held.lock();
        retire(job);  // all of it is being done
        if (--job.workers == 0) left_.notify_all();
    }
}

}  // namespace kvstore
