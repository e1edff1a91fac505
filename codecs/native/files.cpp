#include "files.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace kvstore {

namespace {

constexpr std::size_t kCachedPieceBytes = 4 << 20;
constexpr std::size_t kBouncedPieceBytes = 1 << 20;
constexpr std::size_t kMostPieces = 1024;  // IOV_MAX

class Descriptor {
public:
    explicit Descriptor(int fd) : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    int get() const { return fd_; }
    bool is_open() const { return fd_ >= 0; }
    FileError close() {
        const int fd = fd_;
        fd_ = -1;
        // After EINTR the descriptor is gone on Linux, and nothing is known to have failed.
        return ::close(fd) == 0 || errno == EINTR ? 0 : errno;
    }

private:
    int fd_;
};

// Memory of the thread's own for what must not go to the caller's directly.
std::uint8_t* scratch() {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    thread_local const std::unique_ptr<void, Free> memory(std::aligned_alloc(4096, kBouncedPieceBytes));
    return static_cast<std::uint8_t*>(memory.get());
}

template <typename Call>
ssize_t again(Call call) {
    ssize_t done;
    do done = call();
    while (done < 0 && errno == EINTR);
    return done;
}

// What a page cache holds already, straight into the caller's memory. -1 with EAGAIN where it would have to wait; -1
// with ECANCELED where nobody waits any more.
ssize_t read_cached(FileTask& task, int fd, std::uint64_t at, std::uint8_t* out, std::size_t bytes) {
    ssize_t done = -1;
    int error = ECANCELED;
    task.while_awaited([&] {
        iovec piece{out, bytes};
        done = again([&] { return preadv2(fd, &piece, 1, static_cast<off_t>(at), RWF_NOWAIT); });
        error = errno;
    });
    if (done < 0) errno = error;
    return done;
}

ssize_t read_bounced(FileTask& task, int fd, std::uint64_t at, std::uint8_t* out, std::size_t bytes) {
    std::uint8_t* const own = scratch();
    if (own == nullptr) {
        errno = ENOMEM;
        return -1;
    }
    const ssize_t done = again([&] { return pread(fd, own, bytes, static_cast<off_t>(at)); });
    if (done <= 0) return done;
    if (task.while_awaited([&] { std::memcpy(out, own, static_cast<std::size_t>(done)); })) return done;
    errno = ECANCELED;
    return -1;
}

FileError make_folders(const std::string& path) {
    for (std::size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1))
        if (mkdir(path.substr(0, end).c_str(), 0777) != 0 && errno != EEXIST) return errno;
    return 0;
}

FileError write_all(int fd, std::vector<iovec>& pieces) {
    std::size_t first = 0;
    off_t at = 0;
    while (first < pieces.size()) {
        if (pieces[first].iov_len == 0) {
            ++first;
            continue;
        }
        const auto count = static_cast<int>(std::min(pieces.size() - first, kMostPieces));
        ssize_t done = again([&] { return pwritev(fd, &pieces[first], count, at); });
        if (done < 0) return errno;
        if (done == 0) return EIO;
        at += done;
        while (done > 0) {
            const auto taken = std::min(static_cast<std::size_t>(done), pieces[first].iov_len);
            pieces[first].iov_base = static_cast<std::uint8_t*>(pieces[first].iov_base) + taken;
            pieces[first].iov_len -= taken;
            done -= static_cast<ssize_t>(taken);
            if (pieces[first].iov_len == 0) ++first;
        }
    }
    return 0;
}

FileError sync_folder_of(const std::string& path) {
    const Descriptor folder(open(path.substr(0, path.rfind('/')).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return folder.is_open() && fsync(folder.get()) == 0 ? 0 : errno;
}

FileWrite give_name(const std::string& beside, const std::string& path) {
    for (const bool is_retry : {false, true}) {
        if (link(beside.c_str(), path.c_str()) == 0) return {0, true};
        if (errno == EEXIST) {
            // A server may have done it, and its answer been lost: then the file has two names.
            struct stat facts;
            const bool ours = stat(beside.c_str(), &facts) == 0 && facts.st_nlink == 2;
            return {0, ours};
        }
        if (errno != ENOENT || is_retry) break;
        if (const FileError error = make_folders(path); error != 0) return {error, false};
    }
    return {errno, false};
}

FileError fill_beside(const std::string& beside, std::vector<iovec>& pieces, bool synced) {
    Descriptor file(open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file.is_open()) return errno;
    if (const FileError error = write_all(file.get(), pieces); error != 0) return error;
    if (synced && fdatasync(file.get()) != 0) return errno;
    return file.close();
}

}  // namespace

FileRead read_file(FileTask& task, const std::string& path, std::uint64_t offset, std::span<std::uint8_t> out) {
    const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.is_open()) return {errno, 0};
    bool tries_cache = true, is_ahead = false;
    std::size_t filled = 0;
    while (filled < out.size()) {
        const std::size_t bytes = std::min(kCachedPieceBytes, out.size() - filled);
        std::uint8_t* const to = out.data() + filled;
        ssize_t done = -1;
        errno = EAGAIN;
        if (tries_cache) done = read_cached(task, file.get(), offset + filled, to, bytes);
        if (done < 0 && (errno == EAGAIN || errno == EOPNOTSUPP || errno == ENOSYS)) {
            tries_cache = errno == EAGAIN && tries_cache;
            if (!is_ahead) {
                posix_fadvise(file.get(), static_cast<off_t>(offset + filled), static_cast<off_t>(out.size() - filled),
                              POSIX_FADV_WILLNEED);
                is_ahead = true;
            }
            done = read_bounced(task, file.get(), offset + filled, to, std::min(kBouncedPieceBytes, bytes));
        }
        if (done < 0) return {errno, filled};
        if (done == 0) break;
        filled += static_cast<std::size_t>(done);
    }
    return {0, filled};
}

FileWrite write_file(FileTask& task, const std::string& beside, const std::string& path, std::vector<iovec> pieces,
                     bool synced) {
    if (access(path.c_str(), F_OK) == 0) return {0, false};
    FileWrite outcome{fill_beside(beside, pieces, synced), false};
    // From here on the caller's memory is not needed. Before, it may have left and used the memory for something else.
    if (outcome.error == 0 && !task.while_awaited([] {})) outcome.error = ECANCELED;
    if (outcome.error == 0) outcome = give_name(beside, path);
    unlink(beside.c_str());
    if (outcome.is_new && synced) outcome.error = sync_folder_of(path);
    return outcome;
}

FileHead read_head(const std::string& path, std::size_t bytes) {
    const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.is_open()) return {errno, {}};
    FileHead head;
    head.bytes.resize(bytes);
    std::size_t filled = 0;
    while (filled < bytes) {
        const ssize_t done = again([&] {
            return pread(file.get(), head.bytes.data() + filled, bytes - filled, static_cast<off_t>(filled));
        });
        if (done < 0) return {errno, {}};
        if (done == 0) break;
        filled += static_cast<std::size_t>(done);
    }
    head.bytes.resize(filled);
    return head;
}

FolderList list_folder(const std::string& path) {
    DIR* const folder = opendir(path.c_str());
    if (folder == nullptr) return {errno, {}};
    FolderList list;
    while (true) {
        errno = 0;
        const dirent* const entry = readdir(folder);
        if (entry == nullptr) {
            list.error = errno;
            break;
        }
        const std::string name = entry->d_name;
        struct stat facts;
        if (name == "." || name == ".." || fstatat(dirfd(folder), entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if (S_ISDIR(facts.st_mode)) list.entries.push_back({name, -1});
        if (S_ISREG(facts.st_mode)) list.entries.push_back({name, facts.st_size});
    }
    closedir(folder);
    return list;
}

}  // namespace kvstore
