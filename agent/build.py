"""Builds the workspace agent into one file that any Python 3.9 or newer can run."""

import os
import py_compile
import tempfile
import zipfile
from pathlib import Path

SHEBANG = b"#!/usr/bin/env python3\n"
_LAUNCHER = b"""\
import gc

gc.disable()  # what is loaded is kept: looking for garbage in it is a sixth of the time that loading takes
from agent.__main__ import main

gc.freeze()
gc.enable()
raise SystemExit(main())
"""
_LEFT_OUT = {"build.py"}
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold; any fixed time makes builds reproducible


def build_zipapp(target: Path, *, compiled: bool = False) -> Path:
    """Write the zipapp to ``target`` (replaced in one step, mode 0755) and return it.

    The same sources give the same bytes, whoever builds them and when. With ``compiled``, what this very Python would
    compile at each start is in it too; any other goes on with the sources. Raises ``OSError`` if it cannot be written.
    """
    files = [path for path in Path(__file__).parent.glob("*.py") if path.name not in _LEFT_OUT]
    sources = {f"agent/{path.name}": path.read_bytes() for path in files}
    if compiled:
        sources |= {f"agent/{path.stem}.pyc": _bytecode(path) for path in files}
    sources["__main__.py"] = _LAUNCHER
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(SHEBANG)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                for name in sorted(sources):
                    entry = zipfile.ZipInfo(name, _TIME)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, sources[name])
        Path(temporary).chmod(0o755)
        return Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _bytecode(source: Path) -> bytes:
    """Return a module as this Python compiles it, marked as valid whatever the times of the files are."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "module.pyc")
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(compiled), f"agent/{source.name}", doraise=True, invalidation_mode=mode)
        return compiled.read_bytes()
