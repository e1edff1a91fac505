// Plain gets and the reads of other servers for Python: what answers them, and what checks the answers.
#include "arrival.hpp"
#include "bind.hpp"
#include "buffer.hpp"
#include "peer_reads.hpp"
#include "plain_gets.hpp"
#include "ranges.hpp"
#include "staged_puts_object.hpp"

#include <nanobind/stl/vector.h>

namespace kvstore {

namespace {

// A part that is held for Python to send.
class Held {
public:
    Held(std::uint16_t method, std::unique_ptr<HeldPart> part) : part_(std::move(part)) {
        const FrameHead frame = frame_head(method, 0, part_->message, part_->payload.size());
        const auto* const bytes = reinterpret_cast<const std::uint8_t*>(&frame);
        head_.assign(bytes, bytes + sizeof frame);
        head_.insert(head_.end(), part_->message.begin(), part_->message.end());
    }

    nb::bytes head() const { return nb::bytes(head_.data(), head_.size()); }
    nb::object data() const {
        if (!part_) throw nb::value_error("this part is held no more");
        const auto payload = part_->payload;
        auto* const start = const_cast<char*>(reinterpret_cast<const char*>(payload.data()));
        PyObject* const view = PyMemoryView_FromMemory(start, static_cast<Py_ssize_t>(payload.size()), PyBUF_READ);
        if (view == nullptr) throw nb::python_error();
        return nb::steal(view);
    }
    void close() {
        const nb::gil_scoped_release release;  // whoever has the store's lock may wait for it
        part_.reset();
    }

private:
    std::unique_ptr<HeldPart> part_;
    std::vector<std::uint8_t> head_;
};

nb::object find(PartSource& source, std::uint16_t method, nb::handle message_object) {
    const BufferView message(message_object, "message");
    FrameHead head{};
    head.method = method;
    std::unique_ptr<HeldPart> found;
    {
        const nb::gil_scoped_release release;
        found = source.find(head, {message.data(), message.bytes()});
    }
    if (!found) return nb::none();
    return nb::cast(new Held(method, std::move(found)), nb::rv_policy::take_ownership);
}

// Tells Python that a reader has gone.
std::function<void()> told_of_readers(nb::object freed) {
    return [freed = std::move(freed)] {
        const nb::gil_scoped_acquire acquire;
        try {
            freed();
        } catch (nb::python_error& error) {
            error.discard_as_unraisable("a reader has gone");
        }
    };
}

template <typename Record>
std::vector<Record> records_of(const nb::bytes& packed, const char* name) {
    if (packed.size() % sizeof(Record) != 0) throw nb::value_error((std::string(name) + " are cut off").c_str());
    std::vector<Record> records(packed.size() / sizeof(Record));
    if (!records.empty()) std::memcpy(records.data(), packed.data(), packed.size());
    return records;
}

PartScope scope_of(Intake& intake, Holdings& holdings, Tally& tally, const std::vector<Policy*>& orders,
                   std::uint32_t scope, const nb::bytes& ns, const nb::bytes& parts, const nb::bytes& headers) {
    PartTable table{records_of<PartId>(parts, "parts"), records_of<std::uint32_t>(headers, "headers")};
    if (table.parts.empty() || table.parts.size() != table.headers.size())
        throw nb::value_error("every part has a length of its header, and there is one at least");
    return {&intake, &holdings, &tally, orders, scope, fixed_bytes<SpecDigest>(ns, "namespace"), std::move(table)};
}

// An arrival whose destination Python reads into.
class ArrivalObject {
public:
    ArrivalObject(const RawPart& part, const nb::bytes& digests)
        : arrival_(part.groups(), records_of<Digests::value_type>(digests, "digests")) {
        if (digests.size() != part.groups().size() * kDigestBytes) throw nb::value_error("a digest for each layer group");
    }
    void take(nb::handle object) {
        const BufferView bytes(object, "bytes");
        const ReleaseGilFor release(bytes.bytes());
        arrival_.take({bytes.data(), bytes.bytes()});
    }
    std::vector<std::uint32_t> damaged() const { return arrival_.damaged(); }

private:
    PartArrival arrival_;
};

nb::object digests(const RawPart& part, nb::handle message_object, const nb::bytes& item) {
    const BufferView message(message_object, "message");
    const std::optional<Digests> found =
        part.digests({message.data(), message.bytes()}, record_of<ItemRef>(item, "item"));
    if (!found) return nb::none();
    return nb::bytes(found->data(), found->size() * kDigestBytes);
}

}  // namespace

void bind_gets(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Held>(m, "HeldPart")
        .def_prop_ro("head", &Held::head)
        .def_prop_ro("data", &Held::data)
        .def("close", &Held::close);
    nb::class_<PartScope>(m, "PartScope")
        .def("__init__", [](PartScope* self, Intake& intake, Holdings& holdings, Tally& tally,
                            const std::vector<Policy*>& orders, std::uint32_t scope, const nb::bytes& ns,
                            const nb::bytes& parts, const nb::bytes& headers) {
                new (self) PartScope(scope_of(intake, holdings, tally, orders, scope, ns, parts, headers));
            }, "intake"_a, "holdings"_a, "tally"_a, "orders"_a, "scope"_a, "namespace"_a, "parts"_a, "headers"_a,
            nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
            nb::keep_alive<1, 5>());  // a list holds what is in it: it must not change
    nb::class_<PartSource>(m, "PartSource").def("find", find, "method"_a, "message"_a, nb::keep_alive<0, 1>());
    nb::class_<PlainGets, PartSource>(m, "PlainGets")
        .def("__init__", [](PlainGets* self, std::uint16_t method, nb::object freed) {
                new (self) PlainGets(method, told_of_readers(std::move(freed)));
            }, "method"_a, "freed"_a)
        .def("add_scope", [](PlainGets& self, const nb::bytes& spec, const PartScope& scope) {
                return self.add_scope(fixed_bytes<SpecDigest>(spec, "spec"), scope);
            }, "spec"_a, "scope"_a, nb::keep_alive<1, 3>());
    nb::class_<PeerReads, PartSource>(m, "PeerReads")
        .def("__init__", [](PeerReads* self, std::uint16_t record_method, std::uint16_t object_method,
                            nb::object freed) {
                new (self) PeerReads(record_method, object_method, told_of_readers(std::move(freed)));
            }, "record_method"_a, "object_method"_a, "freed"_a)
        .def("add_records", [](PeerReads& self, const nb::bytes& spec, const PartScope& scope) {
                self.add_records(fixed_bytes<SpecDigest>(spec, "spec"), scope);
            }, "spec"_a, "scope"_a, nb::keep_alive<1, 3>())
        .def("add_objects", &PeerReads::add_objects, "scope"_a, "data_at"_a, nb::keep_alive<1, 2>())
        .def_prop_ro_static("RECENT_MS", [](nb::handle) { return PeerReads::kRecentMs; });
    nb::class_<RawPart>(m, "RawPart")
        .def("__init__", [](RawPart* self, const nb::bytes& spec, nb::handle offsets, nb::handle lengths,
                            std::uint64_t nbytes) {
                const Ranges ranges(offsets, lengths, nbytes);
                new (self) RawPart(fixed_bytes<SpecDigest>(spec, "spec"), {ranges.all().begin(), ranges.all().end()});
            }, "spec"_a, "offsets"_a, "lengths"_a, "nbytes"_a)
        .def_prop_ro("nbytes", &RawPart::bytes)
        .def("digests", digests, "message"_a, "item"_a);
    nb::class_<ArrivalObject>(m, "Arrival")
        .def(nb::init<const RawPart&, const nb::bytes&>(), "part"_a, "digests"_a, nb::keep_alive<1, 2>())
        .def("take", &ArrivalObject::take, "bytes"_a)
        .def_prop_ro("damaged", &ArrivalObject::damaged);
}

}  // namespace kvstore
