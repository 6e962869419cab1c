"""Which packages there are: every folder of dexcore/ and of kernels/ with an ``__init__.py``. All else is in pyproject.

The kernels stand at the top of the repository and are installed inside the package, as `dexcore.kernels`: the top-level
name `kernels` is Hugging Face's. A pyproject can say so for packages in a list, and not for packages that are found.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["dexcore", "dexcore.*"]),
        *(f"dexcore.{name}" for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"dexcore.kernels": "kernels"},
)
