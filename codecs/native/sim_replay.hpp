// A trace of requests against tiers of some policy: what is hit, moved and saved. The policies are the store's own.
#pragma once

#include "admission.hpp"
#include "load_plan.hpp"
#include "policy.hpp"
#include "sim_oracle.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace kvstore {

// Columns of a trace, by request and by chunk. The chunks of request i are chunk[starts[i] .. starts[i + 1]), in the
// order of its prompt.
struct SimTrace {
    std::size_t requests = 0;
    std::size_t chunks = 0;
    const std::int64_t* times_ms = nullptr;
    const std::uint32_t* input_tokens = nullptr;
    const std::uint16_t* tenants = nullptr;
    const std::uint8_t* linked = nullptr;  // 1: a chunk counts only behind all before it; 0: wherever it stands
    const std::uint64_t* starts = nullptr;
    const std::uint32_t* chunk = nullptr;
    const std::uint32_t* chunk_tokens = nullptr;
    const std::uint64_t* chunk_bytes = nullptr;
    const std::uint8_t* ended = nullptr;  // 1: a client says that the prompt has ended, once it is stored
};

// In which order the chunks of a request reach the policy. `leaf`: from the tail of the prompt to its head, so that in
// any order of use the tail goes first. `put`: those that the look-up hits in one call, then, without a lease any
// more, the new ones in prompt order, as an engine stores them.
// `forward`: every chunk by itself, in prompt order, as simulators of single objects do; nothing is leased, and nothing
// has a parent.
enum class Touch : int { leaf, put, forward };

struct SimTier {
    std::uint64_t capacity = 0;
    double smaller = 1;  // by how much what lies here is encoded
    TierSpeed speed;
    bool second_touch = false;        // what comes down was used twice
    std::uint64_t bytes_per_day = 0;  // that may be written (0: no bound)
};

struct SimSetup {
    std::string policy;  // of make_policy, or `belady`
    std::vector<SimTier> tiers;
    std::vector<double> shares;  // of every tenant
    Prefill prefill;
    Touch touch = Touch::leaf;
    bool overlap = false;   // the engine computes from the front while the back is loaded
    bool bypass = true;     // Belady need not take in what is used later than all that is there
    std::size_t first = 0;  // the first request that counts
};

// What happened in one tier while it counted. Bytes as stored there.
struct TierTally {
    std::uint64_t hit_tokens = 0;
    std::uint64_t hit_bytes = 0;      // of the chunks that were found here first
    std::uint64_t loaded_bytes = 0;   // those of them that were worth loading
    std::uint64_t written_bytes = 0;  // taken in: new, moved down, moved up
    std::uint64_t demoted_bytes = 0;  // those of them that came from the tier above
    std::uint64_t evictions = 0;
    std::uint64_t refused = 0;        // chunks that found no room
    std::array<std::uint64_t, kEntryNames.size()> kept_out{};  // chunks, by why they were refused
    std::uint64_t peak_bytes = 0;     // the most that lay here, over the whole trace
};

// One entry a request, of all requests.
struct SimResult {
    std::vector<std::uint32_t> hit_tokens;
    std::vector<std::uint32_t> loaded_tokens;  // fewer, where recomputing them is quicker
    std::vector<double> flops_saved;           // by what was hit
    std::vector<double> ttft_s;
    std::vector<float> policy_s;               // in the policy and in what moves chunks at its word
    std::vector<TierTally> tiers;
};

class SimReplay {
public:
    // std::invalid_argument for a policy that there is not, and for no or more tiers than `LoadTime::kTiers`.
    SimReplay(const SimTrace& trace, const SimSetup& setup);
    SimResult run();

private:
    static constexpr std::uint32_t kNone = kNoRow;

    struct Tier {
        SimTier setup;
        std::vector<std::unique_ptr<Policy>> policies;  // by tenant
        std::unique_ptr<Admission> filter;  // null: everything comes down
        std::vector<std::uint64_t> used_by;
        std::uint64_t used = 0;
        std::uint64_t written = 0;  // ever
        TierTally tally;
    };

    void look_up(std::size_t request);
    void plan_linked(std::size_t request);
    void plan_segments(std::size_t request);
    void tell_demand(std::size_t request);
    void tell_hits(std::size_t request);
    void step_leaf_first(std::size_t request);
    void step_as_put(std::size_t request);
    void step_forward(std::size_t request);
    void tell_ended(std::size_t request);

    bool here(std::uint32_t chunk, std::size_t tier) const { return (where_[chunk] >> tier & 1U) != 0; }
    std::uint64_t stored_bytes(std::uint32_t chunk, std::size_t tier) const;
    void admit(std::uint32_t chunk, std::size_t tier, bool demoted, std::uint32_t parent_row = kNoRow);
    bool make_room(std::size_t tier, std::uint64_t bytes, std::uint32_t chunk);
    bool evict_one(std::size_t tier, std::uint32_t incoming);
    std::int64_t victim_of(Policy& policy);
    void evict(std::uint32_t row, std::size_t tier);
    bool is_kept_out(std::uint32_t chunk, std::size_t tier);
    std::uint32_t row_for(std::uint32_t chunk);
    void release_if_gone(std::uint32_t chunk);
    void foresee();
    bool counts() const { return request_ >= setup_.first; }

    const SimTrace trace_;
    const SimSetup setup_;
    std::vector<Tier> tiers_;
    SimResult result_;
    std::size_t request_ = 0;
    std::int64_t now_ms_ = 0;
    std::vector<std::uint8_t> where_;    // by chunk: a bit for each tier
    std::vector<std::uint32_t> row_of_;  // by chunk
    std::vector<std::uint32_t> chunk_of_, free_rows_;
    std::vector<std::uint32_t> leased_;  // by row: the request, plus one, that holds it
    std::vector<std::uint32_t> seen_;    // by chunk: the request, plus one, that has it last
    std::vector<std::uint8_t> used_;     // by chunk: since it came
    std::vector<Arrival> arrival_;       // by chunk: how it came first
    std::vector<std::uint16_t> tenant_;  // by chunk
    bool oracle_ = false;
    std::vector<std::uint32_t> next_request_, next_place_;  // by event, where the policy is Belady's
    std::vector<NextUse> next_by_row_, next_by_chunk_;
    std::vector<TierSpeed> speeds_;
    std::vector<StoredChunk> run_;
    std::vector<std::uint32_t> rows_;
    std::vector<std::uint64_t> keys_;
};

}  // namespace kvstore
