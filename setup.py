"""The one thing that pyproject.toml cannot say: an extension that may fail to build.

Setuptools knows extensions that are optional; no other backend does. Without a compiler, on PyPy and on a Python
without the GIL (which has no limited API) cio_batch is installed without it, and does the same, slower.
"""

import platform
import sysconfig

from setuptools import Extension, setup

LIMITED = platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[Extension("cio_batch._speedups", ["cio_batch/_speedups.c"], py_limited_api=True, optional=True)]
    if LIMITED
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
