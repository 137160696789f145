// What the accesses of block 0 cost, by source line: wavefronts of shared memory, where lanes that want different words of
// one bank wait for each other, and sectors of 32 bytes of global memory. The i-th access of each lane of a warp from one
// place in the code is taken for one request of the warp.
#pragma once
#include <cstddef>
#include <string>

namespace gpu::host {

void forget_traffic();
void count_access(const void* address, size_t bytes, const void* pc);
void count_request(const void* const* addresses, int lanes, size_t bytes, const void* pc);  // of shared memory
// Lines "place,shared or global,requests,cost,least cost".
std::string traffic_table();

}  // namespace gpu::host
