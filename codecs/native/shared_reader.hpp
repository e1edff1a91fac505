// The Python object around a mapped shared index.
#pragma once

#include "bind.hpp"
#include "shared_table.hpp"

#include <memory>
#include <system_error>

namespace kvstore {

[[noreturn]] void raise_os_error(const std::system_error& error);
nanobind::object flag_list(const std::uint8_t* present, std::size_t count);
nanobind::object used_list(const SharedReach& reach);

// Held by a call in progress as well, so that close() in another thread does not unmap what it reads.
class SharedReader {
public:
    SharedReader(int fd, std::size_t bytes);
    nanobind::object lookup(const nanobind::bytes& spec, const nanobind::bytes& refs) const;
    std::uint64_t extents() const { return table_ == nullptr ? 0 : table_->extents(); }
    void close() { table_.reset(); }
    std::shared_ptr<SharedTableReader> table() const { return table_; }

private:
    std::shared_ptr<SharedTableReader> table_;
};

}  // namespace kvstore
