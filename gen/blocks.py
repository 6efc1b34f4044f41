# SPDX-License-Identifier: Apache-2.0
"""Block discovery: a block is a file ``rtl/<family>/<name>.py`` that defines ``<Name>Config``.

No list is kept.  Files are read as text, so that listing a hundred blocks imports none of them.
Other packages add blocks through the entry-point group ``atriplex.blocks``: each entry names a
package laid out like ``atriplex.rtl`` whose sister ``...sim`` holds the golden models.
"""

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rtl.errors import AtriplexError, unknown


@dataclass(frozen=True)
class Block:
    """One block: where it is, and on demand what it is."""

    name: str
    family: str
    module: str
    path: Path

    @functools.cached_property
    def _classes(self) -> dict[str, ast.ClassDef]:
        tree = ast.parse(self.path.read_text())
        return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    @property
    def class_name(self) -> str:
        return class_name(self.name)

    @functools.cached_property
    def summary(self) -> str:
        """The first line of the component's docstring."""
        text = ast.get_docstring(self._classes[self.class_name]) or ""
        return text.partition("\n")[0]

    @functools.cached_property
    def papers(self) -> tuple[str, ...]:
        return tuple(self._literal("papers", ()))

    @functools.cached_property
    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        return self._literal("presets", {"default": {}})

    def _literal(self, name: str, default: Any) -> Any:
        for node in self._classes[f"{self.class_name}Config"].body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value:
                return ast.literal_eval(node.value)
        return default

    @property
    def component(self) -> type:
        """The component class (imports the block)."""
        return getattr(importlib.import_module(self.module), self.class_name)

    @property
    def config(self) -> Any:
        """The config class (imports the block)."""
        return getattr(importlib.import_module(self.module), f"{self.class_name}Config")


def class_name(name: str) -> str:
    """``ternary_dot`` becomes ``TernaryDot``."""
    return "".join(word.capitalize() for word in name.split("_"))


@functools.cache
def found() -> Mapping[str, Block]:
    """Every block by name, sorted by family and name."""
    blocks = {}
    for package in _packages():
        for block in _scan(package):
            if block.name in blocks:
                both = f"{blocks[block.name].path} and {block.path}"
                raise AtriplexError(f"two blocks are called {block.name}: {both}")
            blocks[block.name] = block
    return dict(sorted(blocks.items(), key=lambda item: (item[1].family, item[0])))


def names() -> list[str]:
    return list(found())


def find(name: str) -> Block:
    """The block of that name; an unknown name is an error with the nearest known one."""
    if name not in found():
        raise AtriplexError(unknown("block", name, found()))
    return found()[name]


def _packages() -> Iterator[str]:
    yield f"{__name__.split('.')[0]}.rtl"
    for entry in importlib.metadata.entry_points(group="atriplex.blocks"):
        yield entry.value


def _scan(package: str) -> Iterator[Block]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise AtriplexError(f"the entry point of group atriplex.blocks names no package: {package}")
    for root in spec.submodule_search_locations:
        for path in sorted(Path(root).glob("*/[a-z]*.py")):
            name, family = path.stem, path.parent.name
            if f"class {class_name(name)}Config(" in path.read_text():
                yield Block(name, family, f"{package}.{family}.{name}", path)
