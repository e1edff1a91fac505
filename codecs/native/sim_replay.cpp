#include "sim_replay.hpp"

#include "mixed_key.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <numeric>
#include <stdexcept>

namespace kvstore {

namespace {

constexpr NextUse kNever = ~NextUse{0};

Costs costs_of(const Prefill& prefill, const TierSpeed& speed) {
    return {prefill.flops_per_token, prefill.flops_per_token2, prefill.flops_per_s,
            speed.bytes_per_s,       speed.latency_s,          speed.decode_bytes_per_s};
}

}  // namespace

SimReplay::SimReplay(const SimTrace& trace, const SimSetup& setup)
    : trace_(trace), setup_(setup), where_(trace.chunks), row_of_(trace.chunks, kNone), leased_(trace.chunks),
      seen_(trace.chunks), used_(trace.chunks), arrival_(trace.chunks), tenant_(trace.chunks),
      oracle_(setup.policy == "belady") {
    if (setup.tiers.empty() || setup.tiers.size() > LoadTime::kTiers)
        throw std::invalid_argument("there are 1 to " + std::to_string(LoadTime::kTiers) + " tiers");
    const auto rows = static_cast<std::uint32_t>(trace.chunks);
    if (oracle_) {
        next_by_row_.resize(rows);
        foresee();
    }
    const double all = std::accumulate(setup.shares.begin(), setup.shares.end(), 0.0);
    for (const SimTier& tier : setup.tiers) {
        Tier& made = tiers_.emplace_back();
        made.setup = tier;
        speeds_.push_back(tier.speed);
        made.used_by.resize(setup.shares.size());
        if (!oracle_ && (tier.second_touch || tier.bytes_per_day != 0))
            made.filter = std::make_unique<Admission>(tier.second_touch, tier.bytes_per_day, tier.capacity, rows);
        for (const double share : setup.shares) {
            std::unique_ptr<Policy> policy;
            if (oracle_)
                policy = std::make_unique<OraclePolicy>(next_by_row_, rows);
            else
                policy = make_policy(setup.policy, rows);
            policy->set_capacity(static_cast<std::uint64_t>(static_cast<double>(tier.capacity) * (share / all)));
            policy->set_costs(costs_of(setup.prefill, tier.speed));
            made.policies.push_back(std::move(policy));
        }
    }
    result_.hit_tokens.resize(trace.requests);
    result_.loaded_tokens.resize(trace.requests);
    result_.flops_saved.resize(trace.requests);
    result_.ttft_s.resize(trace.requests);
    result_.policy_s.resize(trace.requests);
}

SimResult SimReplay::run() {
    using Clock = std::chrono::steady_clock;
    for (request_ = 0; request_ < trace_.requests; ++request_) {
        now_ms_ = trace_.times_ms[request_];
        look_up(request_);
        const auto begun = Clock::now();
        if (setup_.touch != Touch::forward) tell_demand(request_);
        if (setup_.touch == Touch::leaf) step_leaf_first(request_);
        if (setup_.touch == Touch::put) step_as_put(request_);
        if (setup_.touch == Touch::forward) step_forward(request_);
        if (trace_.ended[request_] != 0) tell_ended(request_);
        result_.policy_s[request_] = std::chrono::duration<float>(Clock::now() - begun).count();
    }
    for (const Tier& tier : tiers_) result_.tiers.push_back(tier.tally);
    return std::move(result_);
}

// What the request hits and what that saves, before it changes anything. Also leases the chunks hit.
void SimReplay::look_up(std::size_t request) {
    const std::size_t end = trace_.starts[request + 1];
    const bool linked = trace_.linked[request] != 0;
    const bool has_parent = linked && setup_.touch != Touch::forward;
    std::uint64_t parent = 0, at = 0;
    for (std::size_t i = trace_.starts[request]; i < end; ++i) {
        const std::uint32_t chunk = trace_.chunk[i];
        if (arrival_[chunk].key == 0) {
            // As scattered as the store's keys, and never 0.
            arrival_[chunk] = {mixed_key(chunk + std::uint64_t{1}), has_parent ? parent : 0, static_cast<std::uint32_t>(at),
                               trace_.chunk_tokens[chunk], 0};
            tenant_[chunk] = trace_.tenants[request];
        }
        parent = arrival_[chunk].key;
        at += trace_.chunk_tokens[chunk];
        if (oracle_) {
            const std::uint32_t next = next_request_[i];
            next_by_chunk_[chunk] = next == kNone ? kNever : NextUse{next} << 32 | next_place_[i];
            if (row_of_[chunk] != kNone) next_by_row_[row_of_[chunk]] = next_by_chunk_[chunk];
        }
    }
    run_.clear();
    linked ? plan_linked(request) : plan_segments(request);
}

void SimReplay::plan_linked(std::size_t request) {
    const std::size_t begin = trace_.starts[request], end = trace_.starts[request + 1];
    const std::uint64_t prompt = trace_.input_tokens[request];
    std::uint64_t hit = 0;
    for (std::size_t i = begin; i < end && where_[trace_.chunk[i]] != 0; ++i) {
        const std::uint32_t chunk = trace_.chunk[i];
        const auto tier = static_cast<std::uint32_t>(std::countr_zero(where_[chunk]));
        run_.push_back({stored_bytes(chunk, tier), trace_.chunk_tokens[chunk], tier});
        leased_[row_of_[chunk]] = static_cast<std::uint32_t>(request + 1);
        hit = std::min(prompt, hit + trace_.chunk_tokens[chunk]);
    }
    const LoadPlan plan =
        plan_load(run_.data(), run_.size(), 0, prompt, setup_.prefill, speeds_.data(), setup_.overlap);
    result_.hit_tokens[request] = static_cast<std::uint32_t>(hit);
    result_.loaded_tokens[request] = static_cast<std::uint32_t>(plan.to - plan.from);
    result_.flops_saved[request] = setup_.prefill.flops(0, double(hit));
    result_.ttft_s[request] = plan.seconds;
    if (!counts()) return;
    std::uint64_t at = 0;
    for (const StoredChunk& chunk : run_) {
        TierTally& tally = tiers_[chunk.tier].tally;
        tally.hit_tokens += std::min<std::uint64_t>(chunk.tokens, prompt - std::min(prompt, at));
        tally.hit_bytes += chunk.bytes;
        if (at >= plan.from && at < plan.to) tally.loaded_bytes += chunk.bytes;
        at += chunk.tokens;
    }
}

// Segments hit wherever they stand, and each is loaded if that alone is quicker than its share of the prefill.
void SimReplay::plan_segments(std::size_t request) {
    const Prefill& prefill = setup_.prefill;
    const double whole = prefill.seconds(0, trace_.input_tokens[request]);
    LoadTime load(speeds_.data());
    double computed = whole, saved = 0;
    std::uint64_t at = 0, hit = 0, loaded = 0;
    for (std::size_t i = trace_.starts[request]; i < trace_.starts[request + 1]; ++i) {
        const std::uint32_t chunk = trace_.chunk[i];
        const std::uint64_t tokens = trace_.chunk_tokens[chunk], from = at;
        at += tokens;
        if (where_[chunk] == 0) continue;
        const auto tier = static_cast<std::uint32_t>(std::countr_zero(where_[chunk]));
        const StoredChunk stored{stored_bytes(chunk, tier), static_cast<std::uint32_t>(tokens), tier};
        leased_[row_of_[chunk]] = static_cast<std::uint32_t>(request + 1);
        LoadTime alone(speeds_.data());
        alone.add(stored);
        const double seconds = prefill.seconds(double(from), double(at));
        const bool worth = alone.seconds() - speeds_[tier].latency_s - speeds_[tier].queue_s < seconds;
        if (worth) {
            load.add(stored);
            computed -= seconds;
            loaded += tokens;
        }
        hit += tokens;
        saved += prefill.flops(double(from), double(at));
        if (!counts()) continue;
        TierTally& tally = tiers_[tier].tally;
        tally.hit_tokens += tokens;
        tally.hit_bytes += stored.bytes;
        if (worth) tally.loaded_bytes += stored.bytes;
    }
    const double planned = loaded ? prefill.step_s + load.seconds() + std::max(0.0, computed) : whole;
    result_.hit_tokens[request] = static_cast<std::uint32_t>(hit);
    result_.loaded_tokens[request] = static_cast<std::uint32_t>(planned < whole ? loaded : 0);
    result_.flops_saved[request] = saved;
    result_.ttft_s[request] = std::min(planned, whole);
}

// Every tier's policy learns which of the chunks asked for it has not.
void SimReplay::tell_demand(std::size_t request) {
    for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
        keys_.clear();
        for (std::size_t i = trace_.starts[request]; i < trace_.starts[request + 1]; ++i)
            if (!here(trace_.chunk[i], tier)) keys_.push_back(arrival_[trace_.chunk[i]].key);
        if (!keys_.empty())
            tiers_[tier].policies[trace_.tenants[request]]->demand(keys_.data(), keys_.size(), now_ms_);
    }
}

// Tells every tier of the use of `rows_`, root first; they skip what they have not.
void SimReplay::tell_hits(std::size_t request) {
    if (rows_.empty()) return;
    for (const std::uint32_t row : rows_) used_[chunk_of_[row]] = 1;
    for (Tier& tier : tiers_) tier.policies[trace_.tenants[request]]->hit(rows_.data(), rows_.size(), now_ms_);
    rows_.clear();
}

// From the tail of the prompt to its head: what is there is touched, run by run, and what the fastest tier lacks comes
// into it, computed, or loaded from a slower tier, which keeps its copy.
void SimReplay::step_leaf_first(std::size_t request) {
    const auto stamp = static_cast<std::uint32_t>(request + 1);
    const auto told = [&] {
        std::reverse(rows_.begin(), rows_.end());
        tell_hits(request);
    };
    for (std::size_t i = trace_.starts[request + 1]; i-- > trace_.starts[request];) {
        const std::uint32_t chunk = trace_.chunk[i];
        if (seen_[chunk] == stamp) continue;  // a segment that the prompt has twice
        seen_[chunk] = stamp;
        if (where_[chunk] != 0) rows_.push_back(row_of_[chunk]);
        if (here(chunk, 0)) continue;
        told();
        admit(chunk, 0, false);
    }
    told();
}

// As a store sees it: what the look-up hits is touched in one call and loaded, the lease is given back, and then the rest
// is stored in prompt order. What is there behind a gap is put again, which is no use of it.
void SimReplay::step_as_put(std::size_t request) {
    const auto stamp = static_cast<std::uint32_t>(request + 1);
    const std::size_t begin = trace_.starts[request], end = trace_.starts[request + 1];
    for (std::size_t i = begin; i < end; ++i) {
        const std::uint32_t chunk = trace_.chunk[i];
        if (where_[chunk] == 0 && trace_.linked[request] != 0) break;
        if (where_[chunk] == 0 || seen_[chunk] == stamp) continue;
        seen_[chunk] = stamp;
        rows_.push_back(row_of_[chunk]);
        leased_[row_of_[chunk]] = 0;
    }
    tell_hits(request);
    for (std::size_t i = begin; i < end; ++i) {
        const std::uint32_t chunk = trace_.chunk[i];
        if (here(chunk, 0)) continue;
        if (seen_[chunk] == stamp && where_[chunk] == 0) continue;  // it was hit, and has gone since
        const bool follows = trace_.linked[request] != 0 && i > begin && seen_[trace_.chunk[i - 1]] == stamp;
        admit(chunk, 0, false, follows ? row_of_[trace_.chunk[i - 1]] : kNoRow);
        seen_[chunk] = stamp;
    }
}

void SimReplay::step_forward(std::size_t request) {
    for (std::size_t i = trace_.starts[request]; i < trace_.starts[request + 1]; ++i) {
        const std::uint32_t chunk = trace_.chunk[i], row = row_of_[chunk];
        if (row != kNone) {
            leased_[row] = 0;
            used_[chunk] = 1;
            for (Tier& tier : tiers_) tier.policies[tenant_[chunk]]->hit(&row, 1, now_ms_);
        }
        if (here(chunk, 0)) continue;
        for (std::size_t tier = 0; tier < tiers_.size(); ++tier)
            if (!here(chunk, tier)) tiers_[tier].policies[tenant_[chunk]]->demand(&arrival_[chunk].key, 1, now_ms_);
        admit(chunk, 0, false);
    }
}

void SimReplay::tell_ended(std::size_t request) {
    rows_.clear();
    for (std::size_t i = trace_.starts[request]; i < trace_.starts[request + 1]; ++i)
        if (where_[trace_.chunk[i]] != 0) rows_.push_back(row_of_[trace_.chunk[i]]);
    for (Tier& tier : tiers_) tier.policies[trace_.tenants[request]]->ended(rows_.data(), rows_.size(), now_ms_);
    rows_.clear();
}

// For every event when its chunk is used next.
void SimReplay::foresee() {
    const std::size_t events = trace_.starts[trace_.requests];
    next_request_.resize(events);
    next_place_.resize(events);
    next_by_chunk_.assign(trace_.chunks, kNever);
    std::vector<std::uint32_t> request(trace_.chunks, kNone), place(trace_.chunks);
    for (std::size_t n = trace_.requests; n-- > 0;) {
        for (std::size_t i = trace_.starts[n]; i < trace_.starts[n + 1]; ++i) {
            next_request_[i] = request[trace_.chunk[i]];
            next_place_[i] = place[trace_.chunk[i]];
        }
        for (std::size_t i = trace_.starts[n]; i < trace_.starts[n + 1]; ++i) {
            request[trace_.chunk[i]] = static_cast<std::uint32_t>(n);
            place[trace_.chunk[i]] = static_cast<std::uint32_t>(i - trace_.starts[n]);
        }
    }
}

}  // namespace kvstore
