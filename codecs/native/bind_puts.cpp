// What takes puts in without Python, for Python to set up.
#include "bind.hpp"
#include "buffer.hpp"
#include "ranges.hpp"
#include "staged_puts_object.hpp"

namespace kvstore {

namespace {

// Blocks without the interpreter's lock: its holder may be the one that is waited for.
bool acquire(Mutex& mutex, bool blocking) {
    if (mutex.try_lock()) return true;
    if (!blocking) return false;
    const nb::gil_scoped_release release;
    mutex.lock();
    return true;
}

void release(Mutex& mutex) {
    if (!mutex.held()) throw std::runtime_error("release of a lock that nobody holds");
    mutex.unlock();
}

void add_extent(Holdings& holdings, std::uint64_t number, nb::handle memory, Allocator& allocator) {
    holdings.add(number, BufferView(memory, "memory", true).data(), allocator);
}

PutShape shape_of(Intake& intake, Holdings& holdings, Policy& order, Tally& tally, std::uint32_t scope,
                  const nb::bytes& fixed, std::uint64_t header, std::uint64_t payload, std::uint64_t total,
                  nb::handle offsets, nb::handle lengths) {
    const Ranges ranges(offsets, lengths, payload);
    ranges.require_ascending();
    if (header < kHeaderFixedBytes + ranges.size() * kHeaderEntryBytes || total < header || total - header < payload)
        throw std::invalid_argument("a record of " + std::to_string(total) + " bytes does not hold this part");
    return {&intake, &holdings, &order, &tally, scope, payload, header, total,
            fixed_bytes<std::array<std::uint8_t, kHeaderFixedBytes>>(fixed, "fixed"),
            {ranges.all().begin(), ranges.all().end()}};
}

void bind_mutex(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Mutex>(m, "Mutex")
        .def(nb::init<>())
        .def("acquire", acquire, "blocking"_a = true)
        .def("release", release)
        .def("locked", &Mutex::held)
        .def_rw("awaited", &Mutex::awaited)
        .def("__enter__", [](Mutex& mutex) { return acquire(mutex, true); })
        .def("__exit__", [](Mutex& mutex, const nb::args&) { release(mutex); });
}

}  // namespace

void bind_puts(nb::module_& m) {
    using namespace nb::literals;
    bind_mutex(m);
    nb::class_<Holdings>(m, "Holdings")
        .def("__init__", [](Holdings* self, Mutex& lock) { new (self) Holdings(lock); }, "lock"_a,
             nb::keep_alive<1, 2>())
        .def("add", add_extent, "number"_a, "memory"_a, "allocator"_a)
        .def("remove", &Holdings::remove, "number"_a)
        .def("alloc", &Holdings::alloc, "nbytes"_a)
        .def("end", &Holdings::end)
        .def("wait_for_users", &Holdings::wait_for_users, nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Intake>(m, "Intake")
        .def("__init__", [](Intake* self, Index& index, Mutex& lock) { new (self) Intake{index, lock}; }, "index"_a,
             "lock"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
        .def("close", [](Intake& intake) { intake.closed = true; })
        .def_prop_rw("watched", [](const Intake& intake) { return intake.watched.load(); },
                     [](Intake& intake, bool watched) { intake.watched.store(watched); });
    nb::class_<Tally>(m, "Tally")
        .def(nb::init<>())
        .def_ro("hits_dram", &Tally::hits_dram)
        .def_ro("stored", &Tally::stored)
        .def_ro("stored_bytes", &Tally::stored_bytes)
        .def_ro("peer_reads", &Tally::peer_reads)
        .def_ro("peer_bytes", &Tally::peer_bytes)
        .def_rw("used", &Tally::used);
    nb::class_<StagedPutsObject>(m, "StagedPuts")
        .def("__init__", [](StagedPutsObject* self, std::uint16_t method, const nb::bytes& prefix,
                            const nb::bytes& answer) {
                new (self) StagedPutsObject(method, span_of(prefix), span_of(answer));
            }, "method"_a, "prefix"_a, "answer"_a)
        .def("add_memory", [](StagedPutsObject& self, std::uint32_t number, nb::handle memory) {
                return self.add_memory(number, memory);
            }, "number"_a, "memory"_a)
        .def("add_shape", [](StagedPutsObject& self, const nb::bytes& spec, const nb::bytes& part,
                             std::uint32_t tokens, Intake& intake, Holdings& holdings, Policy& order, Tally& tally,
                             std::uint32_t scope, const nb::bytes& fixed, std::uint64_t header, std::uint64_t payload,
                             std::uint64_t total, nb::handle offsets, nb::handle lengths) {
                const auto packed = fixed_bytes<std::array<std::uint8_t, sizeof(PartId)>>(part, "part");
                PartId id;
                std::memcpy(&id, packed.data(), sizeof id);
                return self.puts().add_shape(
                    fixed_bytes<SpecDigest>(spec, "spec"), id, tokens,
                    shape_of(intake, holdings, order, tally, scope, fixed, header, payload, total, offsets, lengths));
            }, "spec"_a, "part"_a, "tokens"_a, "intake"_a, "holdings"_a, "order"_a, "tally"_a, "scope"_a, "fixed"_a,
            "header"_a, "payload"_a, "total"_a, "offsets"_a, "lengths"_a, nb::keep_alive<1, 5>(),
            nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>());
}

}  // namespace kvstore
