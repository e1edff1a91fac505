// Files on a file system that may hang, for Python. Waiting is done without the interpreter's lock.
#include "bind.hpp"
#include "buffer.hpp"
#include "files.hpp"

#include <nanobind/stl/string.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <list>

namespace kvstore {

namespace {

using Clock = FileCrew::Clock;

Clock::time_point end_after(double seconds) {
    const double most = std::min(std::max(seconds, 0.0), 1e8);
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(most));
}

std::string path_of(const nb::bytes& path) { return {path.c_str(), path.size()}; }

void raise_unless(FileError error, const std::string& path) {
    if (error == 0) return;
    errno = error;
    const nb::str name = nb::steal<nb::str>(PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name.ptr());
    throw nb::python_error();
}

// What several threads take numbers from, and where they leave what they found. It is theirs when the caller leaves.
template <typename Found>
struct Batch {
    std::vector<std::string> paths;
    std::vector<Found> found;
    std::atomic<std::size_t> next = 0;
};

class PyFileCrew {
public:
    PyFileCrew(std::size_t threads, std::size_t spare) : crew_(threads, spare) {
        if (threads < 1) throw nb::value_error("a crew has one thread at least");
    }

    nb::object read(const nb::bytes& path_bytes, std::uint64_t offset, nb::handle object, double seconds) {
        const BufferView out(object, "out", true);
        const std::string path = path_of(path_bytes);
        const auto end = end_after(seconds);
        const auto found = std::make_shared<FileRead>();
        const std::span<std::uint8_t> memory(out.data(), out.bytes());
        if (!run([=](FileTask& task) { *found = read_file(task, path, offset, memory); }, end)) return nb::none();
        raise_unless(found->error, path);
        return nb::int_(found->bytes);
    }

    nb::object write(const nb::bytes& beside_bytes, const nb::bytes& path_bytes, nb::handle objects, bool synced,
                     double seconds) {
        std::list<BufferView> views;  // which cannot move
        std::vector<iovec> pieces;
        for (const nb::handle each : objects) {
            views.emplace_back(each, "piece");
            pieces.push_back({views.back().data(), views.back().bytes()});
        }
        const std::string beside = path_of(beside_bytes), path = path_of(path_bytes);
        const auto end = end_after(seconds);
        const auto outcome = std::make_shared<FileWrite>();
        if (!run([=](FileTask& task) { *outcome = write_file(task, beside, path, pieces, synced); }, end))
            return nb::none();
        raise_unless(outcome->error, path);
        return nb::bool_(outcome->is_new);
    }

    nb::object heads(nb::handle paths, std::size_t bytes, double seconds) {
        const auto batch = batch_of<FileHead>(paths);
        if (!run_batch<FileHead>(batch, [bytes](const std::string& path) { return read_head(path, bytes); }, seconds))
            return nb::none();
        nb::list heads;
        for (std::size_t i = 0; i < batch->found.size(); ++i) {
            const FileHead& head = batch->found[i];
            if (head.error == ENOENT || head.error == ENOTDIR || head.error == ESTALE) {
                heads.append(nb::none());
                continue;
            }
            raise_unless(head.error, batch->paths[i]);
            heads.append(nb::bytes(head.bytes.data(), head.bytes.size()));
        }
        return heads;
    }

    nb::object unlink(nb::handle paths, double seconds) {
        const auto batch = batch_of<FileError>(paths);
        const auto remove = [](const std::string& path) { return ::unlink(path.c_str()) == 0 ? 0 : errno; };
        if (!run_batch<FileError>(batch, remove, seconds)) return nb::none();
        std::size_t removed = 0;
        for (std::size_t i = 0; i < batch->found.size(); ++i) {
            const FileError error = batch->found[i];
            removed += error == 0;
            if (error != ENOENT && error != ENOTDIR && error != ESTALE) raise_unless(error, batch->paths[i]);
        }
        return nb::int_(removed);
    }

    nb::object entries(const nb::bytes& folder, double seconds) {
        const std::string path = path_of(folder);
        const auto found = std::make_shared<FolderList>();
        if (!run([=](FileTask&) { *found = list_folder(path); }, end_after(seconds))) return nb::none();
        raise_unless(found->error, path);
        nb::list entries;
        for (const FolderEntry& each : found->entries)
            entries.append(nb::make_tuple(nb::bytes(each.name.data(), each.name.size()), each.bytes));
        return entries;
    }

    void close() {
        const nb::gil_scoped_release release;
        crew_.close();
    }

    std::size_t hung() const { return crew_.hung(); }

private:
    bool run(std::function<void(FileTask&)> work, Clock::time_point end) {
        const auto task = std::make_shared<FileTask>(std::move(work));
        const nb::gil_scoped_release release;
        crew_.start(task);
        return crew_.wait(*task, end);
    }

    template <typename Found>
    static std::shared_ptr<Batch<Found>> batch_of(nb::handle paths) {
        auto batch = std::make_shared<Batch<Found>>();
        for (const nb::handle each : paths) batch->paths.push_back(path_of(nb::cast<nb::bytes>(each)));
        batch->found.resize(batch->paths.size());
        return batch;
    }

    template <typename Found, typename Each>
    bool run_batch(const std::shared_ptr<Batch<Found>>& batch, Each each, double seconds) {
        const auto end = end_after(seconds);
        const auto work = [batch, each](FileTask&) {
            for (std::size_t i = batch->next++; i < batch->paths.size(); i = batch->next++)
                batch->found[i] = each(batch->paths[i]);
        };
        const nb::gil_scoped_release release;
        std::vector<std::shared_ptr<FileTask>> tasks(std::min(crew_.threads(), batch->paths.size()));
        for (auto& task : tasks) crew_.start(task = std::make_shared<FileTask>(work));
        bool all = true;
        for (const auto& task : tasks) all = crew_.wait(*task, end) && all;
        return all;
    }

    FileCrew crew_;
};

}  // namespace

void bind_files(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<PyFileCrew>(m, "FileCrew")
        .def(nb::init<std::size_t, std::size_t>(), "threads"_a, "spare"_a)
        .def("read", &PyFileCrew::read, "path"_a, "offset"_a, "out"_a, "seconds"_a)
        .def("write", &PyFileCrew::write, "beside"_a, "path"_a, "pieces"_a, "synced"_a, "seconds"_a)
        .def("heads", &PyFileCrew::heads, "paths"_a, "nbytes"_a, "seconds"_a)
        .def("unlink", &PyFileCrew::unlink, "paths"_a, "seconds"_a)
        .def("entries", &PyFileCrew::entries, "folder"_a, "seconds"_a)
        .def("close", &PyFileCrew::close)
        .def_prop_ro("hung", &PyFileCrew::hung);
}

}  // namespace kvstore
