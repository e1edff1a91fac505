// What the crew does with files: whole small calls, so that a task goes to another thread once.
#pragma once

#include "file_crew.hpp"

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvstore {

// An errno, or 0.
using FileError = int;

struct FileRead {
    FileError error = 0;
    std::size_t bytes = 0;  // fewer than asked for where the file ends
};

// Fill `out` from `offset`. Memory is written only while the task is awaited: straight from the page cache where that
// does not wait for the file system, else by way of memory of the thread's own.
FileRead read_file(FileTask& task, const std::string& path, std::uint64_t offset, std::span<std::uint8_t> out);

struct FileWrite {
    FileError error = 0;
    bool is_new = false;  // false without an error: the name is there
};

// Write a file under the name `beside`, and give it the name `path` if nothing has that name; folders on the way are
// made. `synced`: file and folder survive power loss. Without the caller, nothing gets the name.
FileWrite write_file(FileTask& task, const std::string& beside, const std::string& path, std::vector<iovec> pieces,
                     bool synced);

struct FileHead {
    FileError error = 0;
    std::vector<std::uint8_t> bytes;
};

FileHead read_head(const std::string& path, std::size_t bytes);

struct FolderEntry {
    std::string name;
    std::int64_t bytes = -1;  // -1: a folder
};

struct FolderList {
    FileError error = 0;
    std::vector<FolderEntry> entries;
};

// Files and folders in a folder; what vanishes meanwhile is left out.
FolderList list_folder(const std::string& path);

}  // namespace kvstore
