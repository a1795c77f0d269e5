"""The compiled part of sampling. Without it NumPy does the same, several times as slowly."""

import os
import sysconfig

from setuptools import Extension, setup

# One build serves every Python from 3.11 on, but for those without the global lock.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
# No multiply-add may be fused, or values would depend on the processor. Roots that set no errno, and
# comparisons that raise no flag, can be done several at a time.
UNIX = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
EXACT = ["/fp:precise"] if os.name == "nt" else UNIX

setup(
    ext_modules=[
        Extension(
            "isometry.sampling._native",
            ["src/isometry/sampling/_native.c"],
            extra_compile_args=EXACT,
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE else [],
            py_limited_api=STABLE,
            optional=True,  # no compiler: the package installs all the same
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
