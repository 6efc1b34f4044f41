// SPDX-License-Identifier: Apache-2.0
// A masked adder in one ECP5 carry chain:  y = a + ((b & enable) ^ invert) + carry.
//
// Each position computes  a ^ (b & enable) ^ invert  in its LUT4, and hands on `a` as the carry
// where the two summands are equal (the LUT2 half of INIT 16'h956A).  Position 0 makes the carry:
// it never propagates, so its carry-in may stay open and nextpnr need not add a feed-in cell.
// Positions 1 to W are the sum.
//
// The flow fills in NAME and WIDTH for every module of the design that keeps this contract.

module NAME (a, b, invert, enable, carry, y);
    localparam W = WIDTH;
    localparam N = (W + 2) / 2 * 2;

    input [W-1:0] a, b, invert, enable;
    input carry;
    output [W-1:0] y;

    wire [N-1:0] a_at = {a, carry};
    wire [N-1:0] b_at = {b, 1'b1};
    wire [N-1:0] c_at = {enable, 1'b1};
    wire [N-1:0] d_at = {invert, 1'b1};
    wire [N-1:0] sum;
    wire [N:0] chain;
    assign chain[0] = 1'b0;
    assign y = sum[W:1];

    genvar i;
    generate for (i = 0; i < N; i = i + 2) begin : at
        CCU2C #(
            .INIT0(i == 0 ? 16'h000A : 16'h956A), .INJECT1_0("NO"),
            .INIT1(16'h956A), .INJECT1_1("NO")
        ) pair (
            .CIN(chain[i]), .COUT(chain[i+2]),
            .A0(a_at[i]), .B0(b_at[i]), .C0(c_at[i]), .D0(d_at[i]), .S0(sum[i]),
            .A1(a_at[i+1]), .B1(b_at[i+1]), .C1(c_at[i+1]), .D1(d_at[i+1]), .S1(sum[i+1])
        );
    end endgenerate
endmodule
