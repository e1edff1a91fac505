// Python buffers at the boundary: views of contiguous memory, and NumPy arrays to return.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace kvstore {

namespace nb = nanobind;

// A contiguous view of an object's bytes, held for as long as this lives. TypeError for an object without a
// buffer, ValueError for one that is not C-contiguous or, where it must be, not writable.
class BufferView {
public:
    BufferView(nb::handle object, const char* name, bool writable = false);
    // With the items' format, for letter().
    static BufferView of_items(nb::handle object, const char* name) { return {object, name, PyBUF_FORMAT}; }
    ~BufferView();
    BufferView(const BufferView&) = delete;
    BufferView& operator=(const BufferView&) = delete;

    std::uint8_t* data() const { return static_cast<std::uint8_t*>(view_.buf); }
    std::size_t bytes() const { return static_cast<std::size_t>(view_.len); }
    std::size_t item_bytes() const { return static_cast<std::size_t>(view_.itemsize); }
    // Whether the struct-module format of the items is one of these letters.
    bool has_items_of(const char* letters) const;

private:
    BufferView(nb::handle object, const char* name, int flags);

    Py_buffer view_{};
};

// Bytes of a fixed length, such as a key. ValueError for another length.
template <typename Array>
Array fixed_bytes(const nb::bytes& bytes, const char* name) {
    Array array;
    if (bytes.size() != array.size())
        throw nb::value_error((std::string(name) + " must have " + std::to_string(array.size()) + " bytes, not " +
                               std::to_string(bytes.size()))
                                  .c_str());
    std::memcpy(array.data(), bytes.data(), array.size());
    return array;
}

// A packed record.
template <typename Record>
Record record_of(const nb::bytes& bytes, const char* name) {
    const auto packed = fixed_bytes<std::array<std::uint8_t, sizeof(Record)>>(bytes, name);
    Record record;
    std::memcpy(&record, packed.data(), sizeof record);
    return record;
}

inline std::size_t record_count(const BufferView& buffer, std::size_t record_bytes, const char* name) {
    if (buffer.bytes() % record_bytes != 0)
        throw nb::value_error((std::string(name) + " has " + std::to_string(buffer.bytes()) +
                               " bytes, no multiple of the record's " + std::to_string(record_bytes))
                                  .c_str());
    return buffer.bytes() / record_bytes;
}

// Packed records need not be aligned; x86-64 and AArch64 read them all the same, the language does not.
template <typename Record>
std::vector<Record> aligned(nb::handle object, const char* name) {
    const BufferView buffer(object, name);
    std::vector<Record> records(record_count(buffer, sizeof(Record), name));
    if (!records.empty()) std::memcpy(records.data(), buffer.data(), buffer.bytes());
    return records;
}

// A one-dimensional array of whole numbers of 64 bits (offsets, lengths).
class Words {
public:
    Words(nb::handle object, const char* name);
    std::size_t size() const { return view_.bytes() / sizeof(std::uint64_t); }
    std::uint64_t operator[](std::size_t i) const;

private:
    BufferView view_;
};

// A one-dimensional array of row numbers, int64, int32, uint64 or uint32; a miss (-1) reads as a number that no
// table has.
class Rows {
public:
    Rows(nb::handle object, const char* name);
    std::size_t size() const { return view_.bytes() / view_.item_bytes(); }
    std::uint64_t operator[](std::size_t i) const;

private:
    BufferView view_;
    bool is_signed_;
};

// numpy.empty(shape, dtype), with its memory. Cheaper than a capsule over memory of our own.
class NewArray {
public:
    NewArray(const char* dtype, std::size_t length);
    NewArray(const char* dtype, std::size_t length, std::size_t width);

    template <typename T>
    T* data() const {
        return static_cast<T*>(data_);
    }
    nb::object release() { return std::move(array_); }

private:
    void allocate(const char* dtype, nb::object shape);

    nb::object array_;
    void* data_ = nullptr;
};

// Work on this many bytes and more is done without the GIL; below, giving it up costs more than the work.
inline constexpr std::size_t kReleaseBytes = 64 * 1024;

class ReleaseGilFor {
public:
    explicit ReleaseGilFor(std::size_t bytes) : state_(bytes > kReleaseBytes ? PyEval_SaveThread() : nullptr) {}
    ~ReleaseGilFor() {
        if (state_ != nullptr) PyEval_RestoreThread(state_);
    }
    ReleaseGilFor(const ReleaseGilFor&) = delete;
    ReleaseGilFor& operator=(const ReleaseGilFor&) = delete;

private:
    PyThreadState* state_;
};

}  // namespace kvstore
