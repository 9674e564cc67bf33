"""The package is built and installed without a network and without any build tool."""

from __future__ import annotations

import csv
import importlib.util
import io
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import layercast

PROJECT = Path(__file__).resolve().parents[1]
HAS_PIP = importlib.util.find_spec("pip") is not None


def backend() -> Any:
    spec = importlib.util.spec_from_file_location("build_backend", PROJECT / "build_backend.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Build(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def test_a_wheel_has_every_module_and_says_what_it_is(self) -> None:
        name = backend().build_wheel(str(self.scratch))
        self.assertEqual(name, f"layercast-{layercast.__version__}-py3-none-any.whl")
        with zipfile.ZipFile(self.scratch / name) as wheel:
            info = f"layercast-{layercast.__version__}.dist-info"
            modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "layercast").rglob("*.py")}
            texts = {f"{info}/{text}" for text in ("METADATA", "WHEEL", "LICENSE", "RECORD", "entry_points.txt")}
            self.assertEqual(set(wheel.namelist()), modules | {"layercast/py.typed"} | texts)
            record = csv.reader(io.StringIO(wheel.read(f"{info}/RECORD").decode()))
            self.assertEqual({row[0] for row in record}, set(wheel.namelist()))
            metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        self.assertEqual((metadata["Name"], metadata["Version"]), ("layercast", layercast.__version__))
        for field in ("Author", "Classifier", "Summary", "Requires-Python", "License"):
            self.assertTrue(metadata[field], field)
        self.assertIn("layercast.attach(", metadata.get_payload())

    def test_an_archive_of_the_sources_can_be_built_from(self) -> None:
        name = backend().build_sdist(str(self.scratch))
        with tarfile.open(self.scratch / name) as archive:
            files = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
        self.assertLessEqual({"pyproject.toml", "build_backend.py", "LICENSE", "README.md", "PKG-INFO"}, files)
        self.assertFalse([file for file in files if "__pycache__" in file])

    @unittest.skipUnless(HAS_PIP, "needs pip")
    def test_pip_installs_it_without_an_index(self) -> None:
        target = self.scratch / "site"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        subprocess.run([*pip, "--target", str(target), str(PROJECT)], check=True, capture_output=True, text=True)
        code = "import layercast; print(layercast.__version__, layercast.__file__)"
        run = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONPATH": str(target)}
        )
        self.assertEqual(run.stdout.split(), [layercast.__version__, str(target / "layercast" / "__init__.py")])

    @unittest.skipUnless(HAS_PIP, "needs pip")
    def test_an_empty_environment_finds_the_plugin_of_vllm_in_the_wheel(self) -> None:
        wheel = self.scratch / backend().build_wheel(str(self.scratch))
        environment = self.scratch / "environment"
        # --without-pip takes the environment from 3 s to 0.1 s; the pip of this interpreter installs into it.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        python = str(environment / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True, text=True)
        run = subprocess.run([python, "-I", "-c", FIND_PLUGIN], capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(run.stdout.split(), ["layercast", "layercast.vllm:register", "layercast.vllm", "[]"])


FIND_PLUGIN = """
import sys
from importlib.metadata import entry_points
(found,) = entry_points(group="vllm.general_plugins")
register = found.load()
heavy = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "vllm", "numpy"))
print(found.name, found.value, register.__module__, heavy)
"""


if __name__ == "__main__":
    unittest.main()
