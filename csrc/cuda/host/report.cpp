// See report.h.
#include "report.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

namespace gpu::host {
namespace {

using Key = std::tuple<Fault, const void*, const void*, Touch, std::string, std::string>;
struct Entry {
    Finding first;
    int64_t times = 0;
    size_t rank = 0;  // in the order of discovery
};
std::map<Key, Entry> found;
std::map<const void*, std::string> lines;

const char* name_of(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool is_ours(const std::string& path) {
    const auto ends = [&](const std::string& end) {
        return path.size() >= end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0;
    };
    const bool unknown = path.find("??") == 0, of_the_library = path.find("/c++/") != std::string::npos;
    return ends("cuda/gpu.h") || ends("host/emulated.h") || unknown || of_the_library;
}

std::string number(int64_t n) { return std::to_string(n); }
std::string thread_of(int t, int block, bool name_block) {
    return "thread " + number(t) + " (warp " + number(t / 32) + (name_block ? ", block " + number(block) : "") + ")";
}
const char* does(Touch t) { return t == Touch::read ? "reads" : t == Touch::write ? "writes" : "changes atomically"; }
const char* did(Touch t) { return t == Touch::read ? "read" : t == Touch::write ? "wrote" : "changed atomically"; }

std::string capital(std::string s) {
    if (!s.empty() && s[0] >= 'a' && s[0] <= 'z') s[0] = static_cast<char>(s[0] - 'a' + 'A');
    return s;
}

std::string sentence(const Finding& f) {
    const std::string at = source_line(f.pc), region = f.region;
    const std::string me = thread_of(f.thread, f.block, false) + " " + does(f.touch) + " at " + at;
    const std::string what = f.touch == Touch::read ? " what " : " over what ";
    const std::string place = "block " + number(f.block) + ", byte " + number(f.byte) + " of " + region;
    switch (f.fault) {
        case Fault::race: {
            const bool one_warp = f.thread / 32 == f.other_thread / 32;
            return "race: " + me + what + thread_of(f.other_thread, 0, false) + " " + did(f.other_touch) + " at " +
                   source_line(f.other) + ", and no block_sync" + (one_warp ? " or warp_sync" : "") +
                   " is between them (" + place + ")";
        }
        case Fault::race_of_blocks:
            return "race between blocks: " + thread_of(f.thread, f.block, true) + " " + does(f.touch) + " at " + at +
                   what + thread_of(f.other_thread, f.other_block, true) + " " + did(f.other_touch) + " at " +
                   source_line(f.other) + "; blocks run in any order (byte " + number(f.byte) + " of " + region + ")";
        case Fault::pending_copy:
            return "copy not waited for: " + me + what + "copy_async16 of " + thread_of(f.other_thread, 0, false) + " at " +
                   source_line(f.other) + " may not have brought yet (" + place + ")";
        case Fault::uninitialised:
            return "uninitialised: " + me + " what nobody has written (" + place + ")";
        case Fault::out_of_bounds:
            return "out of bounds: " + me + " " + number(f.byte < 0 ? -f.byte : f.byte) + " bytes " +
                   (f.byte < 0 ? "before the start of " : "past the end of ") + region + ", which has " + number(f.bytes) + " bytes (block " + number(f.block) + ")";
        case Fault::unknown_address:
            return "out of bounds: " + me + " an address in no buffer of this launch (block " + number(f.block) + ")";
        case Fault::foreign_stack:
            return "out of bounds: " + me + " beyond its local variables (block " + number(f.block) + ")";
        case Fault::read_only:
            return "input changed: " + me + ", and " + region + " is an input (" + place + ")";
        case Fault::misaligned:
            return "misaligned: " + me + ", and the address is not a multiple of the " + number(f.bytes) +
                   " bytes that are moved (" + place + ")";
        case Fault::divergence:
        case Fault::never_ends:
        case Fault::copies_at_end: return f.text;
    }
    return "";
}

// The offset of a place in the file of this library, and the file.
bool locate(const void* pc, std::string& file, uintptr_t& offset) {
    Dl_info info;
    if (pc == nullptr || dladdr(pc, &info) == 0 || info.dli_fname == nullptr) return false;
    file = info.dli_fname;
    offset = reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase);
    return true;
}

// Answers of `addr2line -a -i`: an address, then its lines from the innermost out.
void read_answers(std::FILE* pipe, const std::vector<const void*>& asked) {
    char text[4096];
    size_t i = 0;
    bool have = true;
    while (std::fgets(text, sizeof text, pipe) != nullptr) {
        std::string line(text, std::strcspn(text, "\n"));
        if (line.rfind("0x", 0) == 0) {
            have = ++i > asked.size();
            continue;
        }
        line = line.substr(0, line.find(" (discriminator"));
        if (have || is_ours(line.substr(0, line.rfind(':')))) continue;
        lines[asked[i - 1]] = name_of(line.c_str());
        have = true;
    }
}

}  // namespace

void prefetch_source_lines(const void* const* places, int count) {
    std::string file, command;
    std::vector<const void*> asked;
    for (int i = 0; i < count; ++i) {
        uintptr_t offset;
        // A return address: the call itself is before it.
        if (lines.count(places[i]) || !locate(static_cast<const char*>(places[i]) - 1, file, offset)) continue;
        char digits[32];
        std::snprintf(digits, sizeof digits, " 0x%zx", static_cast<size_t>(offset));
        command += digits;
        asked.push_back(places[i]);
        lines[places[i]] = std::string("address") + digits;
    }
    if (asked.empty() || file.find('\'') != std::string::npos) return;
    command = "LC_ALL=C LD_PRELOAD= addr2line -a -i -e '" + file + "'" + command + " 2>/dev/null";
    std::FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return;
    read_answers(pipe, asked);
    pclose(pipe);
}

std::string source_line(const void* pc) {
    if (pc == nullptr) return "an unknown line";
    if (!lines.count(pc)) prefetch_source_lines(&pc, 1);
    const auto at = lines.find(pc);
    return at == lines.end() ? "an unknown line" : at->second;
}

void forget_findings() { found.clear(); }

void report(const Finding& finding) {
    Entry& entry = found[{finding.fault, finding.pc, finding.other, finding.touch, finding.region, finding.text}];
    if (entry.times++ == 0) entry.first = finding, entry.rank = found.size();
}

std::string sentences() {
    std::vector<const void*> places;
    for (const auto& [key, entry] : found)
        for (const void* pc : {entry.first.pc, entry.first.other})
            if (pc != nullptr) places.push_back(pc);
    prefetch_source_lines(places.data(), static_cast<int>(places.size()));

    std::vector<const Entry*> entries;
    for (const auto& [key, entry] : found) entries.push_back(&entry);
    std::sort(entries.begin(), entries.end(), [](const Entry* a, const Entry* b) {
        return std::tie(a->first.fault, a->rank) < std::tie(b->first.fault, b->rank);
    });

    // Unrolled loops give many places for one line: they are one sentence.
    std::map<std::string, size_t> group_of;
    std::vector<std::pair<const Finding*, int64_t>> groups;
    for (const Entry* entry : entries) {
        const Finding& f = entry->first;
        const std::string name = number(static_cast<int>(f.fault)) + source_line(f.pc) + "|" + source_line(f.other) + "|" +
                                 does(f.touch) + f.region + f.text;
        const auto [at, is_new] = group_of.emplace(name, groups.size());
        if (is_new) groups.push_back({&f, 0});
        groups[at->second].second += entry->times;
    }
    std::string all;
    for (const auto& [f, times] : groups)
        all += capital(sentence(*f)) + (times > 1 ? "; " + number(times) + " times" : "") + ".\n";
    return all;
}

int count_findings() { return static_cast<int>(found.size()); }

}  // namespace gpu::host
