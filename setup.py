"""The one thing that pyproject.toml cannot say: an extension that may fail to build.

Setuptools knows extensions that are optional; no other backend does. Without a compiler, on PyPy and on a Python
without the GIL (which has no limited API) cio_batch is installed without it, and does the same, slower.
"""

import os
import platform
import sysconfig

from setuptools import Extension, setup

LIMITED = platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "cio_batch._speedups",
            ["cio_batch/_speedups.c"],
            py_limited_api=True,
            optional=True,
            # Many Pythons were built with -O2, and ask the same of extensions: gcc 12 then makes no vectors of the
            # loops, and an event costs a sixth more.
            extra_compile_args=[] if os.name == "nt" else ["-O3"],
        )
    ]
    if LIMITED
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
