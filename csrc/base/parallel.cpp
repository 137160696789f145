#include "parallel.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace swk {
namespace {

using TeamBody = void (*)(int worker, int team, void* context);

// ---- torch's threads ------------------------------------------------------------------------------------------------
// The extension does not link to OpenMP. A second runtime next to torch's would mean two thread pools, each of which
// busy-waits after its own loops while the other needs the cores. Instead, this finds the runtime that the process has
// loaded already through the entry points of GCC-compiled code, which LLVM's and Intel's runtimes export, too.
// ddim_step of 131072 elements and torch.add in turn, two cores, median of a pair: 34 us on torch's threads, 48 to 54
// on our own (bench/bench_threads.py). On an overloaded machine busy-waiting is a disadvantage: at load 9 on two cores
// a parallel region takes 25 to 40 ms on torch's threads, also in torch itself, and little on threads that block.

struct OpenMp {
    void (*parallel)(void (*body)(void*), void* context, unsigned threads, unsigned flags) = nullptr;  // GOMP_parallel
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;

    bool found() const { return parallel && thread_num && num_threads; }
};

#if defined(__linux__)
OpenMp openmp_in(void* handle) {
    OpenMp runtime;
    runtime.parallel = reinterpret_cast<decltype(runtime.parallel)>(dlsym(handle, "GOMP_parallel"));
    runtime.thread_num = reinterpret_cast<decltype(runtime.thread_num)>(dlsym(handle, "omp_get_thread_num"));
    runtime.num_threads = reinterpret_cast<decltype(runtime.num_threads)>(dlsym(handle, "omp_get_num_threads"));
    return runtime;
}

// Collects the paths of loaded libraries that may be an OpenMP runtime.
int note_runtime(dl_phdr_info* library, size_t, void* paths) {
    const char* slash = std::strrchr(library->dlpi_name, '/');
    const std::string_view name = slash ? slash + 1 : library->dlpi_name;
    for (const char* runtime : {"libgomp", "libomp", "libiomp"}) {
        if (name.rfind(runtime, 0) == 0) static_cast<std::vector<std::string>*>(paths)->emplace_back(library->dlpi_name);
    }
    return 0;
}

OpenMp find_openmp() {
    // The global scope first: torch's own calls are bound to it if a runtime was preloaded.
    const OpenMp global = openmp_in(RTLD_DEFAULT);
    if (global.found()) return global;
    // dl_iterate_phdr holds a lock that dlopen takes after another one, so calling dlopen inside the callback can
    // deadlock with a thread that loads a library. The paths are therefore collected first.
    std::vector<std::string> paths;
    dl_iterate_phdr(&note_runtime, &paths);
    for (const std::string& path : paths) {
        void* handle = dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
        if (!handle) continue;
        const OpenMp runtime = openmp_in(handle);
        if (runtime.found()) return runtime;  // the handle stays open: the functions are used until the process ends
        dlclose(handle);
    }
    return {};
}
#else
OpenMp find_openmp() { return {}; }
#endif

struct Region {
    const OpenMp& runtime;
    TeamBody body;
    void* context;
};

void run_openmp(const OpenMp& runtime, int threads, TeamBody body, void* context) {
    Region region{runtime, body, context};
    runtime.parallel(
        [](void* context) {
            const Region& region = *static_cast<const Region*>(context);
            region.body(region.runtime.thread_num(), region.runtime.num_threads(), region.context);
        },
        &region, static_cast<unsigned>(threads), 0);
}

// ---- own threads, if there is no OpenMP runtime ---------------------------------------------------------------------

class Pool {
public:
    // A second, simultaneous caller runs single-threaded, because the workers are busy.
    void run(int threads, TeamBody body, void* context) {
        std::unique_lock<std::mutex> only(running_, std::try_to_lock);
        if (!only) return body(0, 1, context);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < threads - 1) {
                workers_.emplace_back(&Pool::work, this, static_cast<int>(workers_.size()) + 1, job_);
            }
            body_ = body, context_ = context, team_ = threads, left_ = threads - 1, ++job_;
        }
        wake_.notify_all();
        body(0, threads, context);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return left_ == 0; });
    }

private:
    void work(int worker, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return job_ != seen; });
            seen = job_;
            if (worker >= team_) continue;
            const TeamBody body = body_;
            void* const context = context_;
            const int team = team_;
            lock.unlock();
            body(worker, team, context);
            lock.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }

    std::mutex running_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    TeamBody body_ = nullptr;
    void* context_ = nullptr;
    int team_ = 0, left_ = 0;
    uint64_t job_ = 0;
};

// Never destroyed: its threads wait until the process ends. A forked child has no threads, so it gets a new pool.
Pool& own_pool() {
    static std::mutex mutex;
    static Pool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) pool = new Pool, owner = getpid();
    return *pool;
}

std::atomic<bool> own_wanted{false};

const OpenMp& openmp() {
    static const OpenMp runtime = find_openmp();
    return runtime;
}

bool takes_own() { return own_wanted.load(std::memory_order_relaxed) || !openmp().found(); }

}  // namespace

void run_team(int threads, TeamBody body, void* context) {
    if (threads <= 1) return body(0, 1, context);
    if (takes_own()) return own_pool().run(threads, body, context);
    run_openmp(openmp(), threads, body, context);
}

const char* thread_source() { return takes_own() ? "own" : "openmp"; }

void use_own_threads(bool own) { own_wanted.store(own, std::memory_order_relaxed); }

}  // namespace swk
