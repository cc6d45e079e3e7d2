#include "cpu/parallel.h"

#include <atomic>
#include <cstring>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace glm5::cpu {
namespace {

// The GNU entry points; LLVM's and Intel's runtimes export them as well.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*max_threads)() = nullptr;
  int (*thread_num)() = nullptr;
  int (*in_parallel)() = nullptr;
  bool complete() const { return parallel && max_threads && thread_num && in_parallel; }
};

#if defined(__linux__)

template <class Function>
void load(Function& function, void* library, const char* symbol) {
  void* address = dlsym(library, symbol);
  std::memcpy(&function, &address, sizeof(address));
}

OpenMp open_runtime(void* library) {
  OpenMp found;
  load(found.parallel, library, "GOMP_parallel");
  load(found.max_threads, library, "omp_get_max_threads");
  load(found.thread_num, library, "omp_get_thread_num");
  load(found.in_parallel, library, "omp_in_parallel");
  return found.complete() ? found : OpenMp{};
}

// torch's wheel carries its own copy under its own file name, so the runtime is found by looking at what is loaded.
int visit(dl_phdr_info* info, size_t, void* result) {
  const char* file = std::strrchr(info->dlpi_name, '/');
  file = file ? file + 1 : info->dlpi_name;
  for (const char* prefix : {"libgomp", "libiomp5", "libomp"}) {
    if (std::strncmp(file, prefix, std::strlen(prefix)) != 0) continue;
    void* library = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
    if (!library) continue;
    const OpenMp found = open_runtime(library);
    if (found.complete()) {
      *static_cast<OpenMp*>(result) = found;
      return 1;
    }
  }
  return 0;
}

OpenMp find_runtime() {
  OpenMp found;
  dl_iterate_phdr(visit, &found);
  return found;
}

#else

OpenMp find_runtime() { return {}; }

#endif

// Looked for until found: the extension may be imported before torch.
const OpenMp& runtime() {
  static OpenMp found = find_runtime();
  if (!found.complete()) found = find_runtime();
  return found;
}

struct Region {
  Piece piece;
  void* context;
  i64 items, step;
  std::atomic<i64> next{0};
};

void work(void* data) {
  Region& region = *static_cast<Region*>(data);
  const i64 thread = runtime().thread_num();
  for (i64 begin; (begin = region.next.fetch_add(region.step)) < region.items;)
    region.piece(region.context, begin, smaller(begin + region.step, region.items), thread);
}

}  // namespace

i64 thread_count() {
  const OpenMp& omp = runtime();
  return omp.complete() && !omp.in_parallel() ? larger(1, omp.max_threads()) : 1;
}

void parallel_pieces(i64 items, i64 grain, Piece piece, void* context) {
  if (items <= 0) return;
  const i64 threads = smaller(thread_count(), ceil_div(items, larger(grain, 1)));
  if (threads <= 1) return piece(context, 0, items, 0);
  // Four pieces a thread: enough to even out a slow core, few enough that a piece keeps its caches warm.
  const i64 step = larger(larger(grain, 1), ceil_div(items, 4 * threads));
  Region region{piece, context, items, step};
  runtime().parallel(work, &region, static_cast<unsigned>(threads), 0);
}

}  // namespace glm5::cpu
