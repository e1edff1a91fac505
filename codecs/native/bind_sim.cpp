// The simulator's replay, and load or recompute.
#include "bind.hpp"
#include "buffer.hpp"
#include "load_plan.hpp"
#include "sim_replay.hpp"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

namespace kvstore {

namespace {

// Latency in seconds, bytes per second, bytes decoded per second, seconds of queue.
using SpeedTuple = std::tuple<double, double, double, double>;
// Capacity, by how much smaller, speed, whether what comes down was used twice, bytes a day.
using TierTuple = std::tuple<std::uint64_t, double, SpeedTuple, bool, std::uint64_t>;
using PrefillTuple = std::tuple<double, double, double, double>;

TierSpeed speed_of(const SpeedTuple& speed) {
    return {std::get<0>(speed), std::get<1>(speed), std::get<2>(speed), std::get<3>(speed)};
}

Prefill prefill_of(const PrefillTuple& prefill) {
    return {std::get<0>(prefill), std::get<1>(prefill), std::get<2>(prefill), std::get<3>(prefill)};
}

void check_tiers(std::size_t count) {
    if (count == 0 || count > LoadTime::kTiers)
        throw nb::value_error(
            ("there are 1 to " + std::to_string(LoadTime::kTiers) + " tiers, not " + std::to_string(count)).c_str());
}

// A column of a trace, held while the trace lives.
template <typename T>
class Column {
public:
    Column(nb::handle object, const char* name) : view_(object, name) {
        if (view_.item_bytes() != sizeof(T))
            throw nb::type_error((std::string(name) + " has items of another size").c_str());
    }
    const T* data() const { return reinterpret_cast<const T*>(view_.data()); }
    std::size_t size() const { return view_.bytes() / sizeof(T); }

private:
    BufferView view_;
};

class Trace {
public:
    Trace(nb::handle times_ms, nb::handle input_tokens, nb::handle tenants, nb::handle linked, nb::handle starts,
          nb::handle chunk, nb::handle chunk_tokens, nb::handle chunk_bytes, nb::handle ended)
        : times_ms_(times_ms, "times_ms"), input_tokens_(input_tokens, "input_tokens"), tenants_(tenants, "tenants"),
          linked_(linked, "linked"), starts_(starts, "starts"), chunk_(chunk, "chunk"),
          chunk_tokens_(chunk_tokens, "chunk_tokens"), chunk_bytes_(chunk_bytes, "chunk_bytes"),
          ended_(ended, "ended") {
        const std::size_t requests = times_ms_.size(), chunks = chunk_tokens_.size();
        if (input_tokens_.size() != requests || tenants_.size() != requests || linked_.size() != requests ||
            ended_.size() != requests || starts_.size() != requests + 1 || chunk_bytes_.size() != chunks)
            throw nb::value_error("the columns of a trace have different lengths");
        if (requests > 0xFFFFFFFEU || chunks > 0xFFFFFFFDU)
            throw nb::value_error("a trace has fewer than 2^32 requests and chunks");
        const std::uint64_t* const starts_at = starts_.data();
        if (starts_at[0] != 0 || starts_at[requests] != chunk_.size() ||
            !std::is_sorted(starts_at, starts_at + requests + 1))
            throw nb::value_error("`starts` does not divide the chunks among the requests");
        if (std::any_of(chunk_.data(), chunk_.data() + chunk_.size(), [chunks](auto each) { return each >= chunks; }))
            throw nb::value_error("a request names a chunk that the trace lacks");
        for (std::size_t i = 0; i < requests; ++i)
            tenants_needed_ = std::max<std::size_t>(tenants_needed_, tenants_.data()[i] + 1U);
    }

    SimTrace columns() const {
        return {times_ms_.size(),  chunk_tokens_.size(), times_ms_.data(), input_tokens_.data(),
                tenants_.data(),   linked_.data(),       starts_.data(),   chunk_.data(),
                chunk_tokens_.data(), chunk_bytes_.data(), ended_.data()};
    }
    std::size_t tenants_needed() const { return tenants_needed_; }

private:
    Column<std::int64_t> times_ms_;
    Column<std::uint32_t> input_tokens_;
    Column<std::uint16_t> tenants_;
    Column<std::uint8_t> linked_;
    Column<std::uint64_t> starts_;
    Column<std::uint32_t> chunk_, chunk_tokens_;
    Column<std::uint64_t> chunk_bytes_;
    Column<std::uint8_t> ended_;
    std::size_t tenants_needed_ = 0;
};

template <typename T>
nb::object array_of(const char* dtype, const std::vector<T>& values) {
    NewArray array(dtype, values.size());
    std::copy(values.begin(), values.end(), array.data<T>());
    return array.release();
}

nb::dict tally_dict(const TierTally& tally) {
    nb::dict told;
    told["hit_tokens"] = tally.hit_tokens;
    told["hit_bytes"] = tally.hit_bytes;
    told["loaded_bytes"] = tally.loaded_bytes;
    told["written_bytes"] = tally.written_bytes;
    told["demoted_bytes"] = tally.demoted_bytes;
    told["evictions"] = tally.evictions;
    told["refused"] = tally.refused;
    for (std::size_t why = 1; why < kEntryNames.size(); ++why) told[kEntryNames[why].data()] = tally.kept_out[why];
    told["peak_bytes"] = tally.peak_bytes;
    return told;
}

nb::dict replay(const Trace& trace, const std::string& policy, const std::vector<TierTuple>& tiers,
                const std::vector<double>& shares, const PrefillTuple& prefill, int touch, bool overlap, bool bypass,
                std::size_t first) {
    check_tiers(tiers.size());
    if (shares.size() < trace.tenants_needed()) throw nb::value_error("every tenant of the trace needs a share");
    if (touch < 0 || touch > static_cast<int>(Touch::forward)) throw nb::value_error("no such order of touches");
    SimSetup setup{policy, {}, shares, prefill_of(prefill), static_cast<Touch>(touch), overlap, bypass, first};
    for (const auto& [capacity, smaller, speed, second_touch, bytes_per_day] : tiers)
        setup.tiers.push_back({capacity, smaller, speed_of(speed), second_touch, bytes_per_day});
    SimResult result;
    {
        const nb::gil_scoped_release release;
        result = SimReplay(trace.columns(), setup).run();
    }
    nb::dict told;
    told["hit_tokens"] = array_of("uint32", result.hit_tokens);
    told["loaded_tokens"] = array_of("uint32", result.loaded_tokens);
    told["flops_saved"] = array_of("float64", result.flops_saved);
    told["ttft_s"] = array_of("float64", result.ttft_s);
    told["policy_s"] = array_of("float32", result.policy_s);
    nb::list tallies;
    for (const TierTally& tally : result.tiers) tallies.append(tally_dict(tally));
    told["tiers"] = tallies;
    return told;
}

nb::tuple plan(nb::handle tokens_object, nb::handle stored_object, nb::handle tiers_object, std::uint64_t start,
               std::uint64_t prompt, const PrefillTuple& prefill, const std::vector<SpeedTuple>& speeds, bool overlap) {
    check_tiers(speeds.size());
    const Column<std::uint32_t> tokens(tokens_object, "tokens");
    const Column<std::uint64_t> stored(stored_object, "stored");
    const Column<std::uint8_t> tiers(tiers_object, "tiers");
    if (stored.size() != tokens.size() || tiers.size() != tokens.size())
        throw nb::value_error("the columns of a run have different lengths");
    TierSpeed known[LoadTime::kTiers];
    for (std::size_t i = 0; i < speeds.size(); ++i) known[i] = speed_of(speeds[i]);
    std::vector<StoredChunk> run(tokens.size());
    for (std::size_t i = 0; i < run.size(); ++i) {
        if (tiers.data()[i] >= speeds.size()) throw nb::value_error("a chunk lies in a tier without a speed");
        run[i] = {stored.data()[i], tokens.data()[i], tiers.data()[i]};
    }
    const LoadPlan best = plan_load(run.data(), run.size(), start, prompt, prefill_of(prefill), known, overlap);
    return nb::make_tuple(best.from, best.to, best.seconds, best.recompute_s, static_cast<int>(best.reason));
}

}  // namespace

void bind_sim(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Trace>(m, "SimTrace")
        .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                      nb::handle>(),
             "times_ms"_a, "input_tokens"_a, "tenants"_a, "linked"_a, "starts"_a, "chunk"_a, "chunk_tokens"_a,
             "chunk_bytes"_a, "ended"_a);
    m.def("sim_replay", &replay, "trace"_a, "policy"_a, "tiers"_a, "shares"_a, "prefill"_a, "touch"_a, "overlap"_a,
          "bypass"_a, "first"_a);
    m.def("plan_load", &plan, "tokens"_a, "stored"_a, "tiers"_a, "start"_a, "prompt"_a, "prefill"_a, "speeds"_a,
          "overlap"_a);
}

}  // namespace kvstore
