# SPDX-License-Identifier: Apache-2.0
"""What differs between the FPGA families: tools, options, cells, and files of pins."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..rtl.errors import AtriplexError, unknown
from .boards import Pin

PINS, ROUTED = "pins.txt", "routed.txt"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of parts, and the tools for it.

    ``cells`` tells yosys of cells that a shell uses.
    ``carry`` says whether carry cells are used unless asked otherwise, ``no_carry`` and ``no_dsp``
    are the options that avoid them and multipliers.  ``pads`` puts pads on a module's ports where
    nextpnr does not.
    ``place_files`` and ``pack_files`` name the files of place and route and of the packer.
    ``models`` are simulation models of the cells, under the data folder of yosys, ``own_models``
    those of this folder; ``unmodelled`` resources have none.  ``costs`` gives for each resource the
    cells that take it (patterns), and how much of it.
    """

    name: str
    synth: tuple[str, ...]
    cells: str = "# cells"
    carry: bool
    no_carry: tuple[str, ...]
    no_dsp: tuple[str, ...] = ()
    pads: str
    place: str
    place_files: tuple[str, ...]
    pins: Callable[[Mapping[str, Pin]], str]
    pack: str
    pack_files: tuple[str, ...]
    suffix: str
    models: tuple[str, ...]
    own_models: tuple[str, ...] = ()
    unmodelled: tuple[str, ...]
    costs: Mapping[str, Mapping[str, int]]

    def resources(self, module: Mapping[str, Any]) -> dict[str, int]:
        """LUT, FF, RAM and DSP of one module of a netlist, without its submodules."""
        cells = Counter(cell["type"] for cell in module["cells"].values())
        used = {
            resource: sum(
                count * cost
                for kind, count in cells.items()
                for pattern, cost in costs.items()
                if fnmatch.fnmatchcase(kind, pattern)
            )
            for resource, costs in self.costs.items()
        }
        if "SB_CARRY" in cells:
            used["lut"] += lone_carries(module)
        return used


def family(name: str) -> Family:
    """The family of that name."""
    if name not in FAMILIES:
        raise AtriplexError(unknown("FPGA family", name, FAMILIES))
    return FAMILIES[name]


def lone_carries(module: Mapping[str, Any]) -> int:
    """iCE40 carries that share no logic cell with a LUT of the same operands."""

    def ends(cell: Mapping[str, Any], *ports: str) -> tuple[Any, ...]:
        return tuple(cell["connections"][port][0] for port in ports)

    cells = module["cells"].values()
    luts = Counter(ends(cell, "I1", "I2", "I3") for cell in cells if cell["type"] == "SB_LUT4")
    carries = Counter(ends(cell, "I0", "I1", "CI") for cell in cells if cell["type"] == "SB_CARRY")
    return (carries - luts).total()


def _pcf(pins: Mapping[str, Pin]) -> str:
    return "".join(f"set_io {port} {pin.name}\n" for port, pin in pins.items())


def _lpf(pins: Mapping[str, Pin]) -> str:
    return "".join(
        f'LOCATE COMP "{port}" SITE "{pin.name}";\n'
        f'IOBUF PORT "{port}" IO_TYPE={pin.attrs["IO_TYPE"]};\n'
        for port, pin in pins.items()
    )


def _cst(pins: Mapping[str, Pin]) -> str:
    return "".join(
        f'IO_LOC "{port}" {pin.name};\n'
        f'IO_PORT "{port}" {" ".join(f"{name}={value}" for name, value in pin.attrs.items())};\n'
        for port, pin in pins.items()
    )


FAMILIES = {
    "ecp5": Family(
        name="ecp5",
        cells="read_verilog -lib +/ecp5/cells_bb.v",
        synth=("synth_ecp5", "-nowidelut"),  # abc doubles enables into wide LUTs, five times over
        carry=True,
        no_carry=("-noccu2",),
        no_dsp=("-nodsp",),
        pads="",
        place="nextpnr-ecp5",
        place_files=("--lpf", PINS, "--textcfg", ROUTED),
        pins=_lpf,
        pack="ecppack",
        pack_files=("{routed}", "{bitstream}"),
        suffix=".bit",
        models=("ecp5/common_sim.vh", "ecp5/ccu2c_sim.vh"),
        own_models=("ecp5_cells.v",),
        unmodelled=(),
        costs={
            "lut": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
            "ff": {"TRELLIS_FF": 1},
            "ram": {"DP16KD": 1, "PDPW16KD": 1},
            "dsp": {"MULT18X18D": 1},
        },
    ),
    "ice40": Family(
        name="ice40",
        synth=("synth_ice40",),
        carry=True,
        no_carry=("-nocarry",),
        pads="",
        place="nextpnr-ice40",
        place_files=("--pcf", PINS, "--asc", ROUTED),
        pins=_pcf,
        pack="icepack",
        pack_files=("{routed}", "{bitstream}"),
        suffix=".bin",
        models=("ice40/cells_sim.v",),
        unmodelled=(),
        costs={
            "lut": {"SB_LUT4": 1},
            "ff": {"SB_DFF*": 1},
            "ram": {"SB_RAM40_4K*": 1},
            "dsp": {"SB_MAC16": 1},
        },
    ),
    "gowin": Family(
        name="gowin",
        synth=("synth_gowin", "-noiopads"),
        carry=False,  # see docs/fpga.md
        # Adders out of LUT5 to LUT8, which yosys prefers, take three times the LUTs.
        no_carry=("-noalu", "-nowidelut"),
        no_dsp=("-nodsp",),
        pads="iopadmap -bits -inpad IBUF O:I -outpad OBUF I:O",
        place="nextpnr-himbaechel-gowin",
        place_files=("--vopt", f"cst={PINS}", "--write", ROUTED),
        pins=_cst,
        pack="gowin_pack",
        pack_files=("-o", "{bitstream}", "{routed}"),
        suffix=".fs",
        models=("gowin/cells_sim.v",),
        unmodelled=("ram", "dsp"),
        costs={
            "lut": {"LUT[1-4]": 1, "ALU": 1, "RAM16S*": 4},
            "ff": {"DFF*": 1},
            "ram": {"SP": 1, "SPX9": 1, "SDP*": 1, "DP": 1, "DPB": 1, "DPX9*": 1, "pROM*": 1},
            "dsp": {"MULT18X18": 1, "MULT9X9": 1},
        },
    ),
}
