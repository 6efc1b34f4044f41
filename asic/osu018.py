# SPDX-License-Identifier: Apache-2.0
"""OSU standard cells for a scalable 180 nm process, as Debian packages them for qflow."""

from .library import Library

LIBRARY = Library(
    name="osu018",
    title="Oklahoma State University, 180 nm",
    get="on Debian and Ubuntu: apt-get install qflow-tech-osu018",
    places=(
        "/usr/share/qflow/tech/osu018/osu018_stdcells.lib",
        "/usr/local/share/qflow/tech/osu018/osu018_stdcells.lib",
    ),
    nand2="NAND2X1",
    driver="INVX4",
    load_ff=40.0,
)
