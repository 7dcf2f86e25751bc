"""Puts the shipped pipeline into a wheel. What the package is stands in setup.cfg."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = Path("pipelines") / "focus-tiny"


class BuildWithPipeline(build_py):
    """Copies focus-tiny into the package that is being built; an editable installation finds it where it is."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode and SHIPPED.is_dir():
            target = Path(self.build_lib) / "diffusers_focus" / "shipped" / SHIPPED.name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(SHIPPED, target)


setup(cmdclass={"build_py": BuildWithPipeline})
