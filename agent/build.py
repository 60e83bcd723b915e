"""Builds the workspace agent into one file that any Python 3.9 or newer can run."""

import os
import tempfile
import zipfile
from pathlib import Path

SHEBANG = b"#!/usr/bin/env python3\n"
_LAUNCHER = b"from agent.__main__ import main\n\nraise SystemExit(main())\n"
_LEFT_OUT = {"build.py"}
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold; any fixed time makes builds reproducible


def build_zipapp(target: Path) -> Path:
    """Write the zipapp to ``target`` (replaced in one step, mode 0755) and return it.

    The same sources give the same bytes, whoever builds them and when. Raises ``OSError`` if it cannot be written.
    """
    sources = {f"agent/{p.name}": p.read_bytes() for p in Path(__file__).parent.glob("*.py") if p.name not in _LEFT_OUT}
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
