"""Builds the package with the standard library alone (PEP 517, 660).

A node without a network, and a fresh virtual environment without setuptools, can then install it from a checkout:
``pip install --no-index ./worker/python``. The package is pure Python, so a wheel is a zip of its files and four texts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NAME = "layercast"

METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: Attaches to a Layercast rank's kernel tensors without copying them, lets vLLM compute out of them, sends trainers' tensors
Author: The Layercast authors
License: Apache-2.0
Keywords: inference,reinforcement-learning,weights,safetensors
Classifier: Development Status :: 4 - Beta
Classifier: Intended Audience :: Developers
Classifier: Intended Audience :: Science/Research
Classifier: License :: OSI Approved :: Apache Software License
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Python :: 3
Classifier: Programming Language :: Python :: 3 :: Only
Classifier: Topic :: Scientific/Engineering :: Artificial Intelligence
Classifier: Typing :: Typed
Requires-Python: >=3.10
Provides-Extra: torch
Requires-Dist: torch>=2.1; extra == "torch"
Description-Content-Type: text/markdown

{readme}"""

# vLLM calls these in each of its processes.
ENTRY_POINTS = """\
[vllm.general_plugins]
layercast = layercast.vllm:register
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: layercast
Root-Is-Purelib: true
Tag: py3-none-any
"""


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    """Writes ``layercast-VERSION-py3-none-any.whl`` into the directory and returns its name."""
    modules = sorted((ROOT / NAME).rglob("*.py"))
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in modules}
    files[f"{NAME}/py.typed"] = b""
    return _write_wheel(Path(wheel_directory), files)


def build_editable(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    """The same with a path to this directory in place of the package's files."""
    return _write_wheel(Path(wheel_directory), {f"{NAME}.pth": f"{ROOT}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: object = None) -> str:
    """Writes ``layercast-VERSION.tar.gz`` into the directory and returns its name."""
    base = f"{NAME}-{_version()}"
    parts = ["pyproject.toml", "build_backend.py", "README.md", "LICENSE", NAME, "tests"]
    with tarfile.open(Path(sdist_directory) / f"{base}.tar.gz", "w:gz", format=tarfile.PAX_FORMAT, dereference=True) as archive:
        for part in parts:
            archive.add(ROOT / part, f"{base}/{part}", filter=_without_caches)
        _add_text(archive, f"{base}/PKG-INFO", _metadata())
    return f"{base}.tar.gz"


def _write_wheel(directory: Path, files: dict[str, bytes]) -> str:
    base = f"{NAME}-{_version()}"
    info = f"{base}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": _metadata().encode(),
        f"{info}/WHEEL": WHEEL.encode(),
        f"{info}/entry_points.txt": ENTRY_POINTS.encode(),
        f"{info}/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    record = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    name = f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(directory / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            # One date for all, the first that a zip knows: the same sources make the same wheel.
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return name


def _version() -> str:
    """As the package itself says it, without importing it."""
    text = (ROOT / NAME / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{NAME}/__init__.py does not say its __version__")
    return found.group(1)


def _metadata() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return METADATA.format(name=NAME, version=_version(), readme=readme)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name.split("/") else entry


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
