// Records striped over devices, for Python: buffers in, locations and outcomes out.
#include "bind.hpp"
#include "buffer.hpp"
#include "striped_memory.hpp"

#include <nanobind/stl/vector.h>

#include <memory>

namespace kvstore {

namespace {


// The memory of the devices is held until `close`.
class StripedObject {
public:
    StripedObject(const nb::list& devices, std::size_t records, std::uint64_t unit, unsigned helpers, nb::handle slots,
                  bool flush) {
        std::vector<DeviceMemory> memory;
        for (const nb::handle each : devices) {
            views_.push_back(std::make_unique<BufferView>(each, "a device's memory", true));
            memory.push_back({views_.back()->data(), views_.back()->bytes()});
        }
        std::optional<RecordSlots> table;
        if (!slots.is_none()) {
            views_.push_back(std::make_unique<BufferView>(slots, "slots", true));
            if (reinterpret_cast<std::uintptr_t>(views_.back()->data()) % sizeof(RecordSlot) != 0)
                throw nb::value_error("slots must be aligned to their length");
            table.emplace(reinterpret_cast<RecordSlot*>(views_.back()->data()),
                          views_.back()->bytes() / sizeof(RecordSlot), flush);
        }
        memory_ = std::make_unique<StripedMemory>(std::move(memory), records, unit, helpers, table);
    }

    nb::dict restore() {
        StripedMemory::Restored found;
        {
            const nb::gil_scoped_release release;
            found = memory_->restore();
        }
        nb::list unused;
        for (const DeviceRange& each : found.unused) unused.append(nb::make_tuple(each.device, each.offset, each.bytes));
        NewArray valid("u4", found.valid.size());
        std::copy(found.valid.begin(), found.valid.end(), valid.data<std::uint32_t>());
        nb::dict told;
        told["valid"] = valid.release();
        told["unused"] = unused;
        told["torn"] = found.torn;
        told["damaged"] = found.damaged;
        told["overlapping"] = found.overlapping;
        return told;
    }

    std::int64_t write(const nb::bytes& header, nb::handle payload_object, std::uint64_t stored) {
        const BufferView payload(payload_object, "payload");
        if (header.size() == 0 || header.size() % kStripeBlock != 0)
            throw nb::value_error("a header has whole blocks of 4096 bytes");
        if (payload.bytes() < stored)
            throw nb::value_error(("a record of " + std::to_string(stored) + " bytes needs as many, not " +
                                   std::to_string(payload.bytes()))
                                      .c_str());
        const std::span head(reinterpret_cast<const std::uint8_t*>(header.data()), header.size());
        const ReleaseGilFor release(stored);
        return memory_->write(head, payload.data(), stored);
    }

    int read(std::uint64_t location, std::uint64_t offset, nb::handle out_object) {
        const BufferView out(out_object, "out", true);
        const ReleaseGilFor release(out.bytes());
        return memory_->read({location, offset, out.data(), out.bytes()});
    }

    std::vector<int> read_many(const nb::sequence& requests) {
        std::vector<std::unique_ptr<BufferView>> views;
        std::vector<StripedMemory::Read> reads;
        std::size_t whole = 0;
        for (const nb::handle each : requests) {
            const auto request = nb::cast<nb::sequence>(each);
            views.push_back(std::make_unique<BufferView>(request[2], "out", true));
            reads.push_back({nb::cast<std::uint64_t>(request[0]), nb::cast<std::uint64_t>(request[1]),
                             views.back()->data(), views.back()->bytes()});
            whole += views.back()->bytes();
        }
        std::vector<int> outcomes(reads.size());
        const ReleaseGilFor release(whole);
        memory_->read_many(reads, outcomes.data());
        return outcomes;
    }

    nb::list where(std::uint64_t location, std::uint64_t offset, std::uint64_t length) {
        nb::list found;
        for (const DeviceRange& each : memory_->where(location, offset, length))
            found.append(nb::make_tuple(each.device, each.offset, each.bytes));
        return found;
    }

    std::uint64_t scan(nb::handle out_object, const std::vector<std::size_t>& devices) {
        const BufferView out(out_object, "out", true);
        const nb::gil_scoped_release release;
        return memory_->scan(out.data(), out.bytes(), devices);
    }

    void close() {
        {
            const nb::gil_scoped_release release;
            memory_->close();
        }
        views_.clear();
    }

    StripedMemory& memory() { return *memory_; }

private:
    std::vector<std::unique_ptr<BufferView>> views_;
    std::unique_ptr<StripedMemory> memory_;
};

nb::tuple told(const Traffic& traffic) { return nb::make_tuple(traffic.bytes, traffic.nanoseconds, traffic.records); }

}  // namespace

void bind_striped(nb::module_& m) {
    using namespace nb::literals;
    m.attr("RECORD_SLOT_BYTES") = sizeof(RecordSlot);
    m.attr("MAX_STRIPED_DEVICES") = kMaxDevices;
    m.attr("STRIPED_NO_ROOM") = StripedMemory::kNoRoom;
    m.attr("STRIPED_NO_SLOT") = StripedMemory::kNoSlot;
    m.attr("STRIPED_CLOSED") = StripedMemory::kClosed;
    m.attr("STRIPED_MISSING") = StripedMemory::kMissing;
    m.attr("STRIPED_BEYOND") = StripedMemory::kBeyond;
    m.attr("STRIPED_SHUT") = StripedMemory::kShut;
    nb::class_<StripedObject>(m, "StripedMemory")
        .def(nb::init<const nb::list&, std::size_t, std::uint64_t, unsigned, nb::handle, bool>(), "devices"_a,
             "records"_a, "unit"_a, "helpers"_a, "slots"_a = nb::none(), "flush"_a = false)
        .def("restore", &StripedObject::restore)
        .def("release", [](StripedObject& self, std::size_t device, std::uint64_t offset, std::uint64_t nbytes) {
            self.memory().release({device, offset, nbytes});
        }, "device"_a, "offset"_a, "nbytes"_a)
        .def("set_units", [](StripedObject& self, const std::vector<std::uint8_t>& units) {
            self.memory().set_units(units);
        }, "units"_a)
        .def("always_help", [](StripedObject& self) { self.memory().set_help(StripedMemory::Help::always); })
        .def_prop_ro("helped", [](StripedObject& self) { return self.memory().helped(); })
        .def("write", &StripedObject::write, "header"_a, "payload"_a, "stored"_a)
        .def("read", &StripedObject::read, "location"_a, "offset"_a, "out"_a)
        .def("read_many", &StripedObject::read_many, "requests"_a)
        .def("remove", [](StripedObject& self, std::uint64_t location) { return self.memory().remove(location); },
             "location"_a)
        .def("where", &StripedObject::where, "location"_a, "offset"_a, "nbytes"_a)
        .def("scan", &StripedObject::scan, "out"_a, "devices"_a)
        .def("close", &StripedObject::close)
        .def_prop_ro("used", [](StripedObject& self) { return self.memory().used(); })
        .def_prop_ro("records", [](StripedObject& self) { return self.memory().records(); })
        .def_prop_ro("reads", [](StripedObject& self) { return told(self.memory().reads()); })
        .def_prop_ro("writes", [](StripedObject& self) { return told(self.memory().writes()); })
        .def_prop_ro("samples", [](StripedObject& self) {
            nb::list each;
            for (const Traffic& traffic : self.memory().samples()) each.append(told(traffic));
            return each;
        });
}

}  // namespace kvstore
