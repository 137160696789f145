// See traffic.h.
#include "traffic.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "block.h"
#include "report.h"
#include "shadow.h"

namespace gpu::host {
namespace {

constexpr uintptr_t kBanks = 32, kBankBytes = 4, kSector = 32, kWavefront = 128;

struct Sum {
    size_t requests = 0, cost = 0, least = 0;
};
struct Site {  // a place in the code
    size_t bytes = 0;
    bool in_shared = false;
    std::vector<std::vector<uintptr_t>> by_thread;
    Sum sum;  // of count_request
};
std::map<const void*, Site> sites;

size_t wavefronts(const uintptr_t* from, size_t lanes, size_t bytes) {
    std::vector<uintptr_t> words[kBanks];
    size_t most = 1;
    for (size_t i = 0; i < lanes; ++i)
        for (uintptr_t word = from[i] / kBankBytes; word <= (from[i] + bytes - 1) / kBankBytes; ++word) {
            auto& bank = words[word % kBanks];
            if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
            most = std::max(most, bank.size());
        }
    return most;
}

void add_shared(Sum& sum, const std::vector<uintptr_t>& from, size_t bytes) {
    ++sum.requests;
    const size_t step = std::min<size_t>(32, kWavefront / bytes);  // lanes that one wavefront can serve
    for (size_t i = 0; i < from.size(); i += step) {
        sum.cost += wavefronts(&from[i], std::min(step, from.size() - i), bytes);
        ++sum.least;
    }
}

void add_global(Sum& sum, const std::vector<uintptr_t>& from, size_t bytes) {
    ++sum.requests;
    std::vector<uintptr_t> sectors, words;
    for (uintptr_t a : from) {
        for (uintptr_t s = a / kSector; s <= (a + bytes - 1) / kSector; ++s) sectors.push_back(s);
        words.push_back(a);
    }
    const auto distinct = [](std::vector<uintptr_t>& v) {
        std::sort(v.begin(), v.end());
        return static_cast<size_t>(std::unique(v.begin(), v.end()) - v.begin());
    };
    sum.cost += distinct(sectors);
    sum.least += (distinct(words) * bytes + kSector - 1) / kSector;
}

Sum sum_of(const Site& site) {
    Sum sum = site.sum;
    for (size_t first = 0; first < site.by_thread.size(); first += 32) {
        size_t longest = 0;
        for (size_t i = first; i < first + 32; ++i) longest = std::max(longest, site.by_thread[i].size());
        for (size_t k = 0; k < longest; ++k) {
            std::vector<uintptr_t> from;
            for (size_t i = first; i < first + 32; ++i)
                if (k < site.by_thread[i].size()) from.push_back(site.by_thread[i][k]);
            site.in_shared ? add_shared(sum, from, site.bytes) : add_global(sum, from, site.bytes);
        }
    }
    return sum;
}

}  // namespace

void forget_traffic() { sites.clear(); }

void count_access(const void* address, size_t bytes, const void* pc) {
    const Block& b = running_block;
    if (!b.options.count || b.running < 0 || b.index != 0) return;
    const auto* a = static_cast<const unsigned char*>(address);
    if (static_cast<size_t>(a - b.stacks.begin()) < b.stacks.bytes() || is_private(address)) return;
    Site& site = sites[pc];
    site.bytes = bytes;
    site.in_shared = static_cast<size_t>(a - b.shared) < b.shared_bytes;
    site.by_thread.resize(b.threads);
    site.by_thread[b.running].push_back(reinterpret_cast<uintptr_t>(a));
}

void count_request(const void* const* addresses, int lanes, size_t bytes, const void* pc) {
    if (!running_block.options.count || running_block.index != 0) return;
    std::vector<uintptr_t> from;
    for (int i = 0; i < lanes; ++i) from.push_back(reinterpret_cast<uintptr_t>(addresses[i]));
    Site& site = sites[pc];
    site.in_shared = true;
    add_shared(site.sum, from, bytes);
}

std::string traffic_table() {
    std::vector<const void*> places;
    for (const auto& [pc, site] : sites) places.push_back(pc);
    prefetch_source_lines(places.data(), static_cast<int>(places.size()));
    std::map<std::string, Sum> by_line;
    for (const auto& [pc, site] : sites) {
        const Sum one = sum_of(site);
        Sum& sum = by_line[source_line(pc) + (site.in_shared ? ",shared" : ",global")];
        sum.requests += one.requests, sum.cost += one.cost, sum.least += one.least;
    }
    std::string table;
    for (const auto& [line, sum] : by_line)
        table += line + "," + std::to_string(sum.requests) + "," + std::to_string(sum.cost) + "," +
                 std::to_string(sum.least) + "\n";
    return table;
}

}  // namespace gpu::host
