// SPDX-License-Identifier: Apache-2.0
// The engine's simulation as a shared library: memories, clock and taps in C++, one call a token.
//
// engine_ports.h is generated: the class of the model (MODEL), the ports of weights (WEIGHTS), the
// bytes of a word of each memory, and the bits of the taps.

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine_ports.h"
#include "verilated.h"

namespace {

// A memory that answers requests for runs of words, in order, a word a cycle.
struct Memory {
    const uint8_t* data = nullptr;
    uint64_t words = 0;
    size_t bytes = 0;
    struct Request {
        uint64_t at, left;
    };
    std::vector<Request> requests;
    size_t first = 0;
    uint64_t served = 0;
    bool offered = false;  // what is offered stays until it is taken

    void ask(uint64_t at, uint64_t count) {
        if (count) requests.push_back({at, count});
    }
    bool waits() const { return first < requests.size(); }
    const uint8_t* word() const { return data + (requests[first].at % words) * bytes; }
    void take() {
        served++;
        offered = false;
        Request& now = requests[first];
        now.at++;
        if (--now.left == 0 && ++first == requests.size()) {
            requests.clear();
            first = 0;
        }
    }
    void clear() {
        requests.clear();
        first = 0;
        offered = false;
    }
};

template <class Port>
void put(Port& port, const uint8_t* from, size_t bytes) {
    std::memcpy(&port, from, bytes);
}

struct Inputs {
    uint8_t weights_valid, gains_valid, embed_valid, token_valid, token_ready, sampler_valid;
    uint8_t weights[WEIGHT_BYTES], gains[GAIN_BYTES], codes[CODE_BYTES];
};

struct Machine {
    VerilatedContext context;
    MODEL top{&context};
    Memory weights, gains, embedding;
    uint64_t cycles = 0;
    uint32_t random = 1;
    uint32_t density = 0;  // of stalls, in 256ths
    int starve = -1;       // of the memories 0, 1, 2 the one that never answers
    bool record = false, remember = false;
    std::vector<uint8_t> taps;
    std::vector<uint32_t> when;
    std::vector<Inputs> inputs;
    uint64_t linear = 0, starved = 0, attention = 0, leads = 0;
    std::vector<uint32_t> gaps;  // of the last token: cycles without weights, by words used before
    uint64_t used = 0;
    int mode = 0, keep = 0;
    uint32_t seed = 0;
    bool seeding = false;

    bool stalls() {
        if (!density) return false;
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        return (random & 255) < density;
    }

    void edge() {
        top.clk = 1;
        top.eval();
        top.clk = 0;
        cycles++;
    }

    void reset() {
        top.rst = 1;
        top.program_i_valid = top.table_i_valid = top.token_i_valid = 0;
        top.weights_i_valid = top.gains_i_valid = top.embed_i_valid = top.sampler_i_valid = 0;
        top.weights_fetch_o_ready = top.gains_fetch_o_ready = top.embed_fetch_o_ready = 1;
        top.token_o_ready = 0;
        for (int cycle = 0; cycle < 4; cycle++) {
            top.eval();
            edge();
        }
        top.rst = 0;
        top.eval();
        for (Memory* memory : {&weights, &gains, &embedding}) memory->clear();
    }

    bool offers(Memory& memory, int which) {
        memory.offered = memory.offered || (memory.waits() && starve != which && !stalls());
        return memory.offered;
    }

    void offer() {
        top.weights_i_valid = offers(weights, 0);
        if (top.weights_i_valid) put(top.WEIGHTS, weights.word(), WEIGHT_BYTES);
        top.gains_i_valid = offers(gains, 1);
        if (top.gains_i_valid) put(top.gains_i_payload_gains, gains.word(), GAIN_BYTES);
        top.embed_i_valid = offers(embedding, 2);
        if (top.embed_i_valid) put(top.embed_i_payload_codes, embedding.word(), CODE_BYTES);
    }

    // What moves at the coming edge.
    void moves() {
        if (top.weights_fetch_o_valid)
            weights.ask(top.weights_fetch_o_payload_address, top.weights_fetch_o_payload_count);
        if (top.gains_fetch_o_valid)
            gains.ask(top.gains_fetch_o_payload_address, top.gains_fetch_o_payload_count);
        if (top.embed_fetch_o_valid) {
            uint64_t rows = top.embed_fetch_o_payload_rows;
            embedding.ask(top.embed_fetch_o_payload_token * rows, rows);
        }
        if (top.weights_i_valid && top.weights_i_ready) weights.take();
        if (top.gains_i_valid && top.gains_i_ready) gains.take();
        if (top.embed_i_valid && top.embed_i_ready) embedding.take();
        const uint32_t* bits = reinterpret_cast<const uint32_t*>(&top.taps);
        auto bit = [bits](int at) { return bits[at / 32] >> (at % 32) & 1; };
        if (used >= gaps.size()) gaps.resize(used + 1024);
        if (bit(TAP_LINEAR))
            used++;
        else
            gaps[used]++;
        linear += bit(TAP_LINEAR);
        starved += bit(TAP_STARVED);
        attention += bit(TAP_ATTENTION);
        leads += bit(TAP_LEADS);
        if (record && (bit(TAP_INPUT) | bit(TAP_CODES) | bit(TAP_SCALE) | bit(TAP_ELEMENT) |
                       bit(TAP_HEAD) | bit(TAP_PEAK) | bit(TAP_ATTENTION))) {
            const uint8_t* from = reinterpret_cast<const uint8_t*>(bits);
            taps.insert(taps.end(), from, from + TAP_BYTES);
            when.push_back(static_cast<uint32_t>(cycles));
        }
    }

    void note() {
        Inputs now;
        now.weights_valid = top.weights_i_valid;
        now.gains_valid = top.gains_i_valid;
        now.embed_valid = top.embed_i_valid;
        now.token_valid = top.token_i_valid;
        now.token_ready = top.token_o_ready;
        now.sampler_valid = top.sampler_i_valid;
        std::memcpy(now.weights, &top.WEIGHTS, WEIGHT_BYTES);
        std::memcpy(now.gains, &top.gains_i_payload_gains, GAIN_BYTES);
        std::memcpy(now.codes, &top.embed_i_payload_codes, CODE_BYTES);
        inputs.push_back(now);
    }

    // One token: until its answer, or with no sample until the engine would take the next one.
    // The answer's token, -1 where none was asked for, -2 where nothing came within `limit`.
    int token(int given, bool restart, bool sample, uint64_t limit) {
        top.token_i_payload_token = given;
        top.token_i_payload_restart = restart;
        top.token_i_payload_sample = sample;
        bool taken = false, chosen = !sample;
        top.sampler_i_payload_mode = mode;
        top.sampler_i_payload_keep = keep;
        top.sampler_i_payload_seed = seed;
        top.sampler_i_payload_seed_load = seeding;
        used = 0;
        gaps.assign(gaps.size(), 0);
        for (uint64_t end = cycles + limit; cycles < end;) {
            top.token_i_valid = !taken;
            top.sampler_i_valid = !chosen;
            top.token_o_ready = !stalls();
            offer();
            top.eval();
            if (remember) note();
            if (taken && !sample && top.token_i_ready) return -1;
            moves();
            bool accepts = top.token_i_valid && top.token_i_ready;
            bool answers = top.token_o_valid && top.token_o_ready;
            int answer = top.token_o_payload_token;
            if (top.sampler_i_valid && top.sampler_i_ready) {
                chosen = true;
                seeding = false;
            }
            edge();
            taken = taken || accepts;
            if (answers) {
                top.token_i_valid = 0;
                top.token_o_ready = 0;
                return answer;
            }
        }
        return -2;
    }
};

}  // namespace

extern "C" {

void* engine_new() {
    Machine* machine = new Machine;
    machine->reset();
    return machine;
}
void engine_free(void* handle) { delete static_cast<Machine*>(handle); }
void engine_reset(void* handle) { static_cast<Machine*>(handle)->reset(); }

// `which`: 0 weights, 1 gains, 2 embedding. The caller keeps the data alive.
void engine_memory(void* handle, int which, const uint8_t* data, uint64_t words) {
    Machine& m = *static_cast<Machine*>(handle);
    Memory* memories[] = {&m.weights, &m.gains, &m.embedding};
    const size_t bytes[] = {WEIGHT_BYTES, GAIN_BYTES, CODE_BYTES};
    *memories[which] = Memory{data, words, bytes[which], {}, 0, 0, false};
}

// Rows of at, kind, when, waits, unit, flag, fresh, slot, rows, words, address, value.
void engine_program(void* handle, const uint64_t* rows, uint64_t count) {
    MODEL& top = static_cast<Machine*>(handle)->top;
    for (uint64_t row = 0; row < count; row++) {
        const uint64_t* op = rows + 12 * row;
        top.program_i_payload_at = op[0];
        top.program_i_payload_kind = op[1];
        top.program_i_payload_when = op[2];
        top.program_i_payload_waits = op[3];
        top.program_i_payload_unit = op[4];
        top.program_i_payload_flag = op[5];
        top.program_i_payload_fresh = op[6];
        top.program_i_payload_slot = op[7];
        top.program_i_payload_rows = op[8];
        top.program_i_payload_words = op[9];
        top.program_i_payload_address = op[10];
        top.program_i_payload_value = op[11];
        top.program_i_payload_last = row == count - 1;
        top.program_i_valid = 1;
        bool done = false;
        while (!done) {
            top.eval();
            done = top.program_i_ready;
            static_cast<Machine*>(handle)->edge();
        }
    }
    top.program_i_valid = 0;
}

// Pairs of cosine and sine by address.
void engine_table(void* handle, const int32_t* pairs, uint64_t count) {
    MODEL& top = static_cast<Machine*>(handle)->top;
    for (uint64_t at = 0; at < count; at++) {
        top.table_i_payload_address = at;
        top.table_i_payload_cos = pairs[2 * at] & TABLE_MASK;
        top.table_i_payload_sin = pairs[2 * at + 1] & TABLE_MASK;
        top.table_i_valid = 1;
        bool done = false;
        while (!done) {
            top.eval();
            done = top.table_i_ready;
            static_cast<Machine*>(handle)->edge();
        }
    }
    top.table_i_valid = 0;
}

void engine_stalls(void* handle, uint32_t density, uint32_t seed) {
    Machine& m = *static_cast<Machine*>(handle);
    m.density = density;
    m.random = seed | 1;
}
// `mode` 0: the likeliest token; 1: drawn from the `keep` likeliest; `seeding` puts the seed once.
void engine_sampling(void* handle, int mode, int keep, uint32_t seed, int seeding) {
    Machine& m = *static_cast<Machine*>(handle);
    m.mode = mode;
    m.keep = keep;
    m.seed = seed;
    m.seeding = seeding;
}
void engine_starve(void* handle, int which) { static_cast<Machine*>(handle)->starve = which; }
void engine_record(void* handle, int taps, int inputs) {
    Machine& m = *static_cast<Machine*>(handle);
    m.record = taps;
    m.remember = inputs;
    m.taps.clear();
    m.when.clear();
}

int engine_token(void* handle, int token, int restart, int sample, uint64_t limit) {
    Machine& m = *static_cast<Machine*>(handle);
    m.taps.clear();
    m.when.clear();
    return m.token(token, restart, sample, limit);
}

uint64_t engine_count(void* handle, int what) {
    Machine& m = *static_cast<Machine*>(handle);
    const uint64_t counts[] = {m.cycles,         m.linear,       m.starved,         m.attention,
                               m.weights.served, m.gains.served, m.embedding.served, m.when.size(),
                               m.inputs.size(),  m.gaps.size(), m.leads};
    return counts[what];
}
uint32_t engine_status(void* handle) { return static_cast<Machine*>(handle)->top.status; }
const uint8_t* engine_taps(void* handle) { return static_cast<Machine*>(handle)->taps.data(); }
const uint32_t* engine_gaps(void* handle) { return static_cast<Machine*>(handle)->gaps.data(); }
const uint32_t* engine_when(void* handle) { return static_cast<Machine*>(handle)->when.data(); }

// Plays remembered inputs again: the bare loop of the model, for comparison. Leaves odd state.
void engine_replay(void* handle) {
    Machine& m = *static_cast<Machine*>(handle);
    for (const Inputs& now : m.inputs) {
        m.top.weights_i_valid = now.weights_valid;
        m.top.gains_i_valid = now.gains_valid;
        m.top.embed_i_valid = now.embed_valid;
        m.top.token_i_valid = now.token_valid;
        m.top.token_o_ready = now.token_ready;
        m.top.sampler_i_valid = now.sampler_valid;
        std::memcpy(&m.top.WEIGHTS, now.weights, WEIGHT_BYTES);
        std::memcpy(&m.top.gains_i_payload_gains, now.gains, GAIN_BYTES);
        std::memcpy(&m.top.embed_i_payload_codes, now.codes, CODE_BYTES);
        m.top.eval();
        m.edge();
    }
}

}  // extern "C"
