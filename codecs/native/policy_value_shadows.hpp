// How the caches that simpler policies would make of the same events do beside the real one, on a sample.
#pragma once

#include "key_chains.hpp"
#include "mapped_array.hpp"
#include "policy.hpp"
#include "policy_value_verdict.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace kvstore {

// Miniature caches of LRU, ARC and MQ that see one chunk in `kSample`, chosen by the hash of its key, and have room for
// as many bytes as the real cache holds of these (SHARDS: Waldspurger and others, FAST 2015; by chunk and not by
// prompt, so that each prompt is in the sample by its share). The real cache is measured on the same chunks. A request
// hits what a cache has of it up to the first chunk that it lacks. 300 bytes a chunk in the sample at most.
class Shadows {
public:
    static constexpr std::array<std::string_view, Verdict::kPolicies> kNames{"lru", "arc", "mq"};
    static constexpr std::size_t kNone = Verdict::kNone;  // `value` by itself

    explicit Shadows(std::uint32_t max_rows);

    // The policy of this name, empty.
    static std::unique_ptr<Policy> make(std::size_t which, std::uint32_t max_rows);

    // A request asks for these, root first, which the real cache has not.
    void asked(std::span<const std::uint64_t> keys, std::int64_t now_ms);
    // It uses these, root first, which the real cache has. `first`: the prompt's first chunk is among them.
    void used(std::span<const std::uint64_t> keys, bool first, std::int64_t now_ms);
    // A chunk has come; `linked` if it counts behind all before it only. It has other bytes now. It has gone; if not
    // `evicted`, from everywhere.
    void came(const Arrival& chunk, bool linked, std::int64_t now_ms);
    void resized(const Arrival& chunk);
    void left(std::uint64_t key, bool evicted, std::int64_t now_ms);

    // Between requests: which of kNames the real cache should follow, after `uses` of all chunks, sampled or not, where
    // it has `size` chunks; kNone: none.
    std::size_t choose(std::uint64_t uses, std::size_t size);
    std::size_t chosen() const { return verdict_.chosen(); }

private:
    static constexpr std::uint64_t kSample = 16;
    static constexpr std::uint32_t kLeastRows = 256;
    static constexpr std::uint8_t kReal = 1U << kNone;  // among the caches that hold a chunk

    struct Entry {
        std::uint64_t key;
        std::uint64_t bytes;
        std::uint32_t position;
        std::uint32_t tokens;
        std::uint32_t chain;  // KeyChains'
        std::uint8_t held;    // bits of caches
        bool linked;
        bool told;  // `asked` has counted the use that brings it
    };
    struct Asked {
        std::uint32_t position, tokens;
        std::uint8_t held;
        bool linked;
    };

    struct Sampled {
        std::uint64_t key;
        std::int64_t row;  // -1: no entry
    };

    static bool samples(std::uint64_t key);
    std::int64_t find(std::uint64_t key) const { return table_.find(key); }
    void touch(std::span<const std::uint64_t> keys, bool told, std::int64_t now_ms);
    std::int64_t add(const Arrival& chunk, bool linked);
    void resize(Entry& entry, std::uint64_t bytes);
    void take(std::size_t cache, std::uint32_t row, std::int64_t now_ms);
    void release(std::uint32_t row, std::uint8_t cache);
    void end_request();

    std::array<std::unique_ptr<Policy>, kNone> policies_;
    std::array<std::uint64_t, kNone + 1> bytes_{};
    MappedArray<Entry> entries_;
    KeyChains<Entry> table_;
    std::vector<std::uint32_t> free_;
    std::uint32_t made_ = 0;
    std::vector<Asked> request_;
    bool began_ = false;  // the first chunk of the prompt was in this request
    std::vector<Sampled> sampled_;  // of the keys at hand
    std::vector<std::uint32_t> rows_;
    std::uint64_t tip_ = 0;            // the chunk of a prompt that was used or came last
    std::uint32_t tip_row_ = kNoRow;  // of the last one of this prompt, up to there, that is in the sample
    Verdict::Hits hits_{};  // of this span
    double asked_ = 0;
    std::uint32_t seen_ = 0;
    Verdict verdict_{kSample};
};

}  // namespace kvstore
