// SPDX-License-Identifier: Apache-2.0
// A word of a table by its address, inverted or not:  y = words[address] ^ {W{invert}}.
//
// A LUT4 chooses between two words and inverts; PFUMX and L6MUX21, the multiplexers that slices
// have behind their LUTs, do the rest.  yosys uses these for functions of five and more inputs only,
// and makes seven LUT4 of what is four here.
//
// The flow fills in NAME, WIDTH and ADDRESS, 2 to 4, for every module that keeps this contract.

module NAME (address, invert, words, y);
    localparam W = WIDTH;
    localparam A = ADDRESS;

    input [A-1:0] address;
    input invert;
    input [(W << A)-1:0] words;
    output [W-1:0] y;

    genvar bit_, n;
    generate for (bit_ = 0; bit_ < W; bit_ = bit_ + 1) begin : at
        wire [(1 << A-1)-1:0] leaf;
        wire [(1 << A-2)-1:0] pair;
        for (n = 0; n < 1 << A-1; n = n + 1) begin : leaves
            LUT4 #(.INIT(16'h35CA)) lut (
                .A(words[2 * n * W + bit_]), .B(words[(2 * n + 1) * W + bit_]),
                .C(address[0]), .D(invert), .Z(leaf[n])
            );
        end
        for (n = 0; n < 1 << A-2; n = n + 1) begin : pairs
            PFUMX mux (.ALUT(leaf[2 * n + 1]), .BLUT(leaf[2 * n]), .C0(address[1]), .Z(pair[n]));
        end
        if (A == 2) begin
            assign y[bit_] = pair;
        end else begin
            wire [(1 << A-3)-1:0] four;
            for (n = 0; n < 1 << A-3; n = n + 1) begin : fours
                L6MUX21 mux (
                    .D0(pair[2 * n]), .D1(pair[2 * n + 1]), .SD(address[2]), .Z(four[n])
                );
            end
            if (A == 3) begin
                assign y[bit_] = four;
            end else begin
                L6MUX21 mux (.D0(four[0]), .D1(four[1]), .SD(address[3]), .Z(y[bit_]));
            end
        end
    end endgenerate
endmodule
