// Policies for Python.
#include "bind.hpp"
#include "buffer.hpp"
#include "policy.hpp"
#include "policy_value.hpp"
#include "use.hpp"
#include "use_log.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>

namespace kvstore {

namespace {

std::uint32_t row_or_none(std::uint64_t row) { return row < kNoRow ? static_cast<std::uint32_t>(row) : kNoRow; }

// For rows that must be some policy's.
std::uint32_t checked_row(std::int64_t row) {
    if (row < 0 || row >= kNoRow) throw nb::index_error(("no policy has row " + std::to_string(row)).c_str());
    return static_cast<std::uint32_t>(row);
}

std::vector<std::uint32_t> rows_of(nb::handle object) {
    const Rows given(object, "rows");
    std::vector<std::uint32_t> rows(given.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = row_or_none(given[i]);
    return rows;
}

void hit(Policy& policy, nb::handle object, std::int64_t now_ms) {
    const std::vector<std::uint32_t> rows = rows_of(object);
    policy.hit(rows.data(), rows.size(), now_ms);
}

void demand(Policy& policy, nb::handle object, std::int64_t now_ms) {
    const Words given(object, "keys");
    std::vector<std::uint64_t> keys(given.size());
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = given[i];
    policy.demand(keys.data(), keys.size(), now_ms);
}

}  // namespace

void bind_policy(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Victims>(m, "Victims")
        .def("__iter__", [](nb::handle self) { return nb::borrow(self); })
        .def("__next__", [](Victims& victims) {
            const std::int64_t row = victims.next();
            if (row < 0) throw nb::stop_iteration();
            return row;
        });
    nb::class_<Policy>(m, "Policy")
        .def(nb::new_([](std::string_view name, std::uint32_t max_rows) { return make_policy(name, max_rows); }),
             "name"_a, "max_rows"_a)
        .def("admit", [](Policy& policy, std::int64_t row, std::uint64_t key, std::uint64_t parent,
                         std::uint32_t position, std::uint32_t tokens, std::uint64_t bytes, std::int64_t now_ms,
                         std::int64_t parent_row) {
                policy.admit(checked_row(row), {key, parent, position, tokens, bytes, row_or_none(parent_row)}, now_ms);
            }, "row"_a, "key"_a, "parent"_a, "position"_a, "tokens"_a, "bytes"_a, "now_ms"_a, "parent_row"_a = -1)
        .def("restore", [](Policy& policy, std::int64_t row, std::uint64_t key, std::uint64_t parent,
                           std::uint32_t position, std::uint32_t tokens, std::uint64_t bytes, std::int64_t idle_ms,
                           std::uint64_t idle_uses, std::int64_t now_ms) {
                policy.restore(checked_row(row), {key, parent, position, tokens, bytes}, {idle_ms, idle_uses}, now_ms);
            }, "row"_a, "key"_a, "parent"_a, "position"_a, "tokens"_a, "bytes"_a, "idle_ms"_a, "idle_uses"_a, "now_ms"_a)
        .def("hit", hit, "rows"_a, "now_ms"_a)
        .def("demand", demand, "keys"_a, "now_ms"_a)
        .def_prop_ro("wants_demand", &Policy::wants_demand)
        .def("ended", [](Policy& policy, nb::handle object, std::int64_t now_ms) {
                const std::vector<std::uint32_t> rows = rows_of(object);
                policy.ended(rows.data(), rows.size(), now_ms);
            }, "rows"_a, "now_ms"_a)
        .def("awaited", [](Policy& policy, nb::handle object, std::int64_t now_ms, std::int64_t until_ms) {
                const std::vector<std::uint32_t> rows = rows_of(object);
                policy.awaited(rows.data(), rows.size(), now_ms, until_ms);
            }, "rows"_a, "now_ms"_a, "until_ms"_a)
        .def("remove", [](Policy& policy, std::int64_t row, bool evicted, std::int64_t now_ms) {
                policy.remove(checked_row(row), evicted, now_ms);
            }, "row"_a, "evicted"_a, "now_ms"_a)
        .def("victim", &Policy::victim)
        .def("victims", &Policy::victims, nb::keep_alive<0, 1>())
        .def("set_capacity", &Policy::set_capacity, "bytes"_a)
        .def("set_costs", [](Policy& policy, double flops_per_token, double flops_per_token2,
                             double prefill_flops_per_s, double load_bytes_per_s, double load_latency_s,
                             double decode_bytes_per_s) {
                policy.set_costs({flops_per_token, flops_per_token2, prefill_flops_per_s, load_bytes_per_s,
                                  load_latency_s, decode_bytes_per_s});
            }, nb::kw_only(), "flops_per_token"_a, "flops_per_token2"_a, "prefill_flops_per_s"_a,
            "load_bytes_per_s"_a, "load_latency_s"_a, "decode_bytes_per_s"_a)
        .def("__len__", &Policy::size)
        .def("__contains__", [](const Policy& policy, std::int64_t row) {
                return row >= 0 && row < kNoRow && policy.contains(static_cast<std::uint32_t>(row));
            }, "row"_a);
    nb::class_<ValuePolicy, Policy>(m, "ValuePolicy")
        .def(nb::init<std::uint32_t>(), "max_rows"_a)
        .def_prop_ro("ghosts", &ValuePolicy::ghosts)
        .def_prop_ro("waits", &ValuePolicy::waits)
        .def_prop_ro("followed", [](const ValuePolicy& policy) -> std::optional<std::string> {
            if (policy.followed() == Shadows::kNone) return std::nullopt;
            return std::string(Shadows::kNames[policy.followed()]);
        });
    nb::class_<UseLog, Policy>(m, "UseLog")
        .def(nb::init<const Index&, std::uint8_t, std::size_t>(), "index"_a, "tier"_a, "most"_a,
             nb::keep_alive<1, 2>())
        .def("take", [](UseLog& log) {
            nb::list uses;
            for (const std::vector<std::uint32_t>& rows : log.take()) {
                NewArray found("u4", rows.size());
                std::copy(rows.begin(), rows.end(), found.data<std::uint32_t>());
                uses.append(found.release());
            }
            return uses;
        });
    m.def("policy_names", [] {
        std::vector<std::string> names(policy_names().begin(), policy_names().end());
        return names;
    });
    m.def("admit_chunk", [](const Index& index, Policy& policy, std::int64_t chunk, std::uint8_t tier,
                            std::int64_t now_ms) {
        admit_chunk(index, policy, index.checked_chunk(static_cast<std::uint64_t>(chunk)), tier, now_ms);
    }, "index"_a, "policy"_a, "chunk"_a, "tier"_a, "now_ms"_a);
    m.def("restore_chunks", [](const Index& index, Policy& policy, nb::handle object, std::uint8_t tier,
                               std::int64_t now_ms) {
        const Rows given(object, "chunks");
        std::vector<std::uint32_t> chunks(given.size());
        for (std::size_t i = 0; i < chunks.size(); ++i) chunks[i] = index.checked_chunk(given[i]);
        restore_chunks(index, policy, chunks, tier, now_ms);
    }, "index"_a, "policy"_a, "chunks"_a, "tier"_a, "now_ms"_a);
    m.def("demand_missing", [](const std::vector<Policy*>& orders, std::uint32_t scope, nb::handle refs_object,
                               nb::handle rows_object) {
        const std::vector<ChunkRef> refs = aligned<ChunkRef>(refs_object, "refs");
        const std::vector<std::int64_t> rows = aligned<std::int64_t>(rows_object, "rows");
        if (rows.size() != refs.size()) throw nb::value_error("every ref has a row, -1 if it is not there");
        for (Policy* const order : orders) demand_missing(*order, scope, refs, rows);
    }, "orders"_a, "scope"_a, "refs"_a, "rows"_a);
    m.def("use_unleased", &use_unleased, "index"_a, "orders"_a, "chunk"_a, "now_ms"_a);
}

}  // namespace kvstore
