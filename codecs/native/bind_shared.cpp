// The shared index for Python.
#include "bind.hpp"
#include "buffer.hpp"
#include "hazard_table.hpp"
#include "index.hpp"
#include "shared_reader.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>
#include <vector>

namespace kvstore {

[[noreturn]] void raise_os_error(const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

namespace {

void init_table(SharedTable* self, std::uint32_t entries) {
    try {
        const nb::gil_scoped_release release;  // its pages are made here
        new (self) SharedTable(entries);
    } catch (const std::system_error& error) {
        raise_os_error(error);
    }
}

// Marks of a client: the rows of the chunks that they name, the tokens of those found and how many were read.
nb::object used_by(const SharedTable& table, const Index& index, nb::handle object) {
    const Rows marks(object, "marks");
    std::vector<std::uint32_t> rows, found;
    std::size_t read = 0;
    for (std::size_t i = 0; i < marks.size(); ++i) {
        const auto mark = static_cast<std::uint32_t>(marks[i]);
        const std::uint32_t row = table.row_in(mark & ~kReadMark);
        if (row == kNone) continue;
        rows.push_back(row);
        if ((mark & kReadMark) != 0) {
            ++read;
        } else {
            found.push_back(row);
        }
    }
    NewArray array("u4", rows.size());
    std::copy(rows.begin(), rows.end(), array.data<std::uint32_t>());
    return nb::make_tuple(array.release(), index.tokens(found.data(), found.size()), read);
}

}  // namespace

nb::object flag_list(const std::uint8_t* present, std::size_t count) {
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(count));
    if (list == nullptr) throw nb::python_error();
    for (std::size_t i = 0; i < count; ++i)
        PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), Py_NewRef(present[i] ? Py_True : Py_False));
    return nb::steal(list);
}

nb::object used_list(const SharedReach& reach) {
    if (reach.first_ones) {
        const nb::object count = nb::int_(reach.count);
        return nb::steal(PyObject_CallOneArg(reinterpret_cast<PyObject*>(&PyRange_Type), count.ptr()));
    }
    nb::list used;
    for (const std::uint32_t each : reach.used) used.append(each);
    return used;
}

SharedReader::SharedReader(int fd, std::size_t bytes) {
    try {
        table_ = std::make_shared<SharedTableReader>(fd, bytes);
    } catch (const std::system_error& error) {
        raise_os_error(error);
    }
}

nb::object SharedReader::lookup(const nb::bytes& spec, const nb::bytes& refs) const {
    const std::shared_ptr<SharedTableReader> table = table_;
    const std::size_t count = refs.size() / sizeof(ChunkRef);
    const SpecDigest digest = fixed_bytes<SpecDigest>(spec, "spec");
    const auto* packed = static_cast<const std::uint8_t*>(refs.data());
    const auto present = std::make_unique_for_overwrite<std::uint8_t[]>(count);
    bool answered = table != nullptr && refs.size() % sizeof(ChunkRef) == 0;
    if (answered) {
        const ReleaseGilFor release(refs.size());
        answered = table->lookup(digest, packed, count, present.get());
    }
    if (!answered) return nb::none();
    const SharedReach reach = reach_of(packed, count, present.get());
    return nb::make_tuple(reach.tokens, used_list(reach), flag_list(present.get(), count));
}

void bind_shared(nb::module_& m) {
    using namespace nb::literals;
    m.attr("HIDDEN") = ChunkRow::kHidden;
    nb::class_<SharedTable>(m, "SharedTable")
        .def("__init__", init_table, "entries"_a)
        .def("open", [](SharedTable& table) { table.set_state(TableState::open); })
        .def("withhold", [](SharedTable& table) { table.set_state(TableState::filling); })
        .def("close", [](SharedTable& table) { table.set_state(TableState::closed); })
        .def("beat", &SharedTable::beat)
        .def("set_extents", &SharedTable::set_extents, "epoch"_a)
        .def("fileno", &SharedTable::fd)
        .def("used_by", used_by, "index"_a, "marks"_a)
        .def_prop_ro("nbytes", &SharedTable::bytes)
        .def_prop_ro("overflowed", &SharedTable::overflowed);
    nb::class_<SharedReader>(m, "SharedTableReader")
        .def(nb::init<int, std::size_t>(), "fd"_a, "nbytes"_a)
        .def("lookup", &SharedReader::lookup, "spec"_a, "refs"_a)
        .def_prop_ro("extents", &SharedReader::extents)
        .def("close", &SharedReader::close);
}

}  // namespace kvstore
