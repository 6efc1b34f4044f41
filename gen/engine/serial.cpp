// SPDX-License-Identifier: Apache-2.0
// The appliance's simulation as a shared library: a host on its serial line, one call a token.
//
// engine_ports.h is generated: the class of the model (MODEL), clock cycles a bit (DIVISOR), and
// FLASH where the appliance reads a flash.

#include <cstdint>

#include "engine_ports.h"
#include "verilated.h"

namespace {

// A serial flash in mode 0 that sleeps until it is woken (ABh) and reads from an address on (03h).
struct Flash {
    const uint8_t* data = nullptr;
    uint64_t first = 0, bytes = 0;  // where data lies; all else is erased
    bool awake = false, clock = false;
    int bits = 0, out = 1;
    uint32_t command = 0;
    uint64_t at = 0;

    int bit() const {
        uint64_t byte = at / 8 - first;
        return (byte < bytes ? data[byte] : 0xff) >> (7 - at % 8) & 1;
    }
    void see(bool select, bool now, int in) {
        bool rises = now && !clock, falls = !now && clock;
        clock = now;
        if (select) {
            if (bits == 8 && command == 0xab) awake = true;
            bits = 0;
            out = 1;
        } else if (rises && bits < 32) {
            command = command << 1 | in;
            if (++bits == 32) at = 8 * uint64_t(command & 0xffffff);
        } else if (falls && bits == 32 && awake && command >> 24 == 0x03) {
            out = bit();
            at++;
        }
    }
};

struct Machine {
    VerilatedContext context;
    MODEL top{&context};
    uint64_t cycles = 0;
    Flash flash;

    void cycle() {
#ifdef FLASH
        top.flash_cipo = flash.out;
#endif
        top.clk = 1;
        top.eval();
        top.clk = 0;
        top.eval();
#ifdef FLASH
        flash.see(top.flash_cs, top.flash_clk, top.flash_copi);
#endif
        cycles++;
    }

    Machine() {
        top.clk = 0;
        top.eval();  // models of iCE40's cells begin with a value of their own for our inputs
        top.host_in = 1;
        top.rst = 1;
        top.eval();
        for (int count = 0; count < 16; count++) cycle();
        top.rst = 0;
        top.eval();
    }

    void send(int byte) {
        int bits = (byte & 0xff) << 1 | 0x200;
        for (int at = 0; at < 10; at++) {
            top.host_in = bits >> at & 1;
            for (int count = 0; count < DIVISOR; count++) cycle();
        }
    }

    // A byte, or -1 where none begins within `limit` cycles or its stop bit is missing.
    int receive(uint64_t limit) {
        for (uint64_t end = cycles + limit; top.host_out; cycle())
            if (cycles == end) return -1;
        int bits = 0;
        for (int count = 0; count < DIVISOR / 2; count++) cycle();
        for (int at = 0; at < 10; at++) {
            bits |= top.host_out << at;
            for (int count = 0; count < DIVISOR - (at == 9 ? DIVISOR / 2 : 0); count++) cycle();
        }
        return bits >> 9 & 1 ? bits >> 1 & 0xff : -1;
    }
};

}  // namespace

extern "C" {

void* serial_new() { return new Machine; }
void serial_free(void* handle) { delete static_cast<Machine*>(handle); }
// What the flash holds from byte `first` on; the caller keeps it alive.
void serial_flash(void* handle, const uint8_t* data, uint64_t first, uint64_t bytes) {
    Flash& flash = static_cast<Machine*>(handle)->flash;
    flash.data = data;
    flash.first = first;
    flash.bytes = bytes;
}
uint64_t serial_cycles(void* handle) { return static_cast<Machine*>(handle)->cycles; }

// The answer to a token; -2 where none came.
int serial_token(void* handle, int token, int restart, int sample, uint64_t limit) {
    Machine& m = *static_cast<Machine*>(handle);
    m.send(token);
    m.send((token >> 8 & 0x3f) | restart << 7 | sample << 6);
    int low = m.receive(limit);
    int high = m.receive(limit);
    return low < 0 || high < 0 ? -2 : low | high << 8;
}

}  // extern "C"
