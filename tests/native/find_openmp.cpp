// Searches for an OpenMP runtime again and again while another thread loads and unloads a library (argv[1]). A search that
// calls dlopen while it holds glibc's lock on the list of libraries stops both threads for ever.
// The runtime is loaded into its own scope, so that the search has to go through the list. test_threads.py runs it.
#include "../../csrc/base/parallel.cpp"

#include <chrono>
#include <cstdio>

int main(int, char** arguments) {
    if (!dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL)) return std::puts("no libgomp"), 0;
    if (dlsym(RTLD_DEFAULT, "GOMP_parallel")) return std::puts("libgomp is in the global scope"), 0;
    std::atomic<long> searches{0}, loads{0};
    std::atomic<bool> found{true};
    std::thread([&] {
        for (;; ++searches) {
            if (!swk::find_openmp().found()) found = false;
        }
    }).detach();
    std::thread([&, library = arguments[1]] {
        for (;; ++loads) {
            if (void* handle = dlopen(library, RTLD_NOW)) dlclose(handle);
        }
    }).detach();
    long searches_before = 0, loads_before = 0;
    for (int round = 0; round < 4; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
        if (searches == searches_before && loads == loads_before) {
            std::puts("deadlock");
            std::fflush(stdout);
            std::_Exit(1);
        }
        searches_before = searches, loads_before = loads;
    }
    std::puts(found ? "ok" : "the runtime was not found");
    std::fflush(stdout);
    std::_Exit(found ? 0 : 1);  // the threads never end
}
