"""The one fact that pyproject.toml cannot express: which build of ONNX Runtime a wheel depends on.

The CPU and the GPU build own the same module, and an extra can only add to the dependencies, never
replace one (docs/decisions/0002). So the choice is made when the wheel is built:

    pip install .                                     # onnxruntime
    POSS_EXPORT_ONNXRUNTIME=gpu pip install .         # onnxruntime-gpu, with any extras
"""

import os

from setuptools import setup

ONNXRUNTIME = {"cpu": "onnxruntime>=1.31", "gpu": "onnxruntime-gpu>=1.31"}

build = os.environ.get("POSS_EXPORT_ONNXRUNTIME", "cpu")
if build not in ONNXRUNTIME:
    raise SystemExit(f"POSS_EXPORT_ONNXRUNTIME is {build!r}; set it to cpu or gpu, or leave it out for cpu")

setup(
    install_requires=[  # the deployment runtime: no torch, no transformers
        "click>=8.1",
        "jinja2>=3.1.6",
        "numpy>=1.26",
        ONNXRUNTIME[build],
        "platformdirs>=4",
        "rich>=13.7",
        "tokenizers>=0.22",
    ]
)
