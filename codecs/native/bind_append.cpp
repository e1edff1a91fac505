#include "append.hpp"
#include "bind.hpp"
#include "buffer.hpp"

#include <cerrno>

namespace kvstore {

namespace {

// 0, the error number of the journal, or -1 where nothing was done: the payload's memory does not serve O_DIRECT.
int append(int fd, std::uint64_t offset, std::uint64_t generation, std::uint64_t location, nb::handle header_object,
           nb::handle payload_object, std::size_t stored, int journal_fd, std::uint64_t journal_offset,
           std::uint64_t sequence, std::uint8_t op, bool direct) {
    const BufferView header(header_object, "header");
    const BufferView payload(payload_object, "payload");
    if (header.bytes() == 0 || header.bytes() % kBlock != 0 || stored > payload.bytes())
        throw nb::value_error("a header has whole blocks, and a payload is as long as is stored of it");
    if (direct && reinterpret_cast<std::uintptr_t>(payload.data()) % kBlock != 0) return -1;
    const LogPlace place{fd, offset, generation, location, journal_fd, journal_offset, sequence, op};
    Outcome outcome{};
    {
        const nb::gil_scoped_release release;
        outcome = append_record(place, {header.data(), header.bytes()}, {payload.data(), payload.bytes()}, stored);
    }
    if (outcome.error == 0 || outcome.stage == Stage::journal) return outcome.error;
    errno = outcome.error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

}  // namespace

void bind_append(nb::module_& m) {
    using namespace nb::literals;
    m.def("append_record", append, "fd"_a, "offset"_a, "generation"_a, "location"_a, "header"_a, "payload"_a,
          "stored"_a, "journal_fd"_a, "journal_offset"_a, "sequence"_a, "op"_a,
          "direct"_a);
}

}  // namespace kvstore
