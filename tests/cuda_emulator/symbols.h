// The module's own symbol table: where its static __shared__ variables lie, and names for faults.
//
// __shared__ expands to `static thread_local` (g++ drops a section attribute inside templates, but
// thread-local storage holds template instances too). Kernels have no other thread-local variables,
// so the thread-local symbols of the module, less those of the libraries compiled into it, are its
// static shared memory.
#pragma once

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace sublimate::emulator {

inline thread_local char sublimate_shared_anchor;  // a thread-local whose address we know

struct SharedVariable {
  std::string name;
  size_t offset, size;  // within the module's thread-local block
};

class Symbols {
 public:
  Symbols() {
    dl_iterate_phdr(&Symbols::find_module, this);
    if (path_.empty()) path_ = "/proc/self/exe";
    read();
  }

  const std::vector<SharedVariable>& shared() const { return shared_; }

  // Start of the calling thread's block of thread-local variables.
  char* shared_base() const { return &sublimate_shared_anchor - anchor_; }

  // Name of the function that holds a code address, or "".
  std::string function(const void* address) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address) - load_;
    auto next = std::upper_bound(functions_.begin(), functions_.end(), at,
                                 [](uintptr_t a, const Function& f) { return a < f.begin; });
    if (next == functions_.begin()) return "";
    const Function& found = *--next;
    return at < found.begin + std::max<size_t>(found.size, 1) ? demangled(found.name) : "";
  }

 private:
  struct Function {
    uintptr_t begin;
    size_t size;
    std::string name;
  };

  static int find_module(dl_phdr_info* info, size_t, void* self) {
    const uintptr_t here = reinterpret_cast<uintptr_t>(&Symbols::find_module);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
      if (segment.p_type == PT_LOAD && here >= begin && here < begin + segment.p_memsz) {
        auto& symbols = *static_cast<Symbols*>(self);
        symbols.path_ = info->dlpi_name;
        symbols.load_ = info->dlpi_addr;
        return 1;
      }
    }
    return 0;
  }

  static std::string demangled(const std::string& name) {
    int status = 0;
    char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    std::string result = status == 0 ? text : name;
    std::free(text);
    return result;
  }

  // Thread-locals of the standard library, pybind11 and this emulator are no shared memory.
  static bool foreign(const char* name) {
    return std::strstr(name, "pybind11") || std::strstr(name, "sublimate_shared_anchor") ||
           std::strncmp(name, "_ZSt", 4) == 0 || std::strncmp(name, "_ZNSt", 5) == 0 ||
           std::strncmp(name, "_ZZNSt", 6) == 0 || std::strncmp(name, "__tls_guard", 11) == 0 ||
           std::strncmp(name, "_ZGV", 4) == 0;
  }

  void read() {
    const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) throw std::runtime_error("cannot read " + path_);
    const size_t bytes = size_t(status.st_size);
    void* map = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (map == MAP_FAILED) throw std::runtime_error("cannot map " + path_);
    const char* image = static_cast<const char*>(map);
    const auto& header = *reinterpret_cast<const ElfW(Ehdr)*>(image);
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(image + header.e_shoff);
    bool anchored = false;
    for (int s = 0; s < header.e_shnum; ++s) {
      if (sections[s].sh_type != SHT_SYMTAB) continue;
      const auto* symbol = reinterpret_cast<const ElfW(Sym)*>(image + sections[s].sh_offset);
      const char* names = image + sections[sections[s].sh_link].sh_offset;
      for (size_t i = 0; i < sections[s].sh_size / sizeof *symbol; ++i) {
        const char* name = names + symbol[i].st_name;
        const int type = symbol[i].st_info & 0xf;
        if (symbol[i].st_shndx == SHN_UNDEF) continue;
        if (type == STT_FUNC) functions_.push_back({symbol[i].st_value, symbol[i].st_size, name});
        if (type != STT_TLS) continue;
        if (std::strstr(name, "sublimate_shared_anchor") && std::strncmp(name, "_ZN", 3) == 0) {
          anchor_ = symbol[i].st_value;
          anchored = true;
        } else if (!foreign(name)) {
          shared_.push_back({demangled(name), symbol[i].st_value, symbol[i].st_size});
        }
      }
    }
    munmap(map, bytes);
    std::sort(functions_.begin(), functions_.end(),
              [](const Function& a, const Function& b) { return a.begin < b.begin; });
    if (!anchored) throw std::runtime_error(path_ + " has no symbol table: link it without -s");
  }

  std::string path_;
  uintptr_t load_ = 0;
  size_t anchor_ = 0;
  std::vector<SharedVariable> shared_;
  std::vector<Function> functions_;
};

}  // namespace sublimate::emulator
