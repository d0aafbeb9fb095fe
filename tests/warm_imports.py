"""What the server of `tests.warm` imports before it forks: everything that a build imports."""

import os

os.environ["NNCF_CI"] = "1"

import torch

torch.set_num_threads(1)

import nncf  # noqa: E402, F401
import onnx  # noqa: E402, F401
import onnxruntime  # noqa: E402, F401
import onnxscript  # noqa: E402, F401
import onnxsim  # noqa: E402, F401

import edgecompile.building.run  # noqa: E402
import edgecompile.cli.main  # noqa: E402
import edgecompile.models.loaders  # noqa: E402
import edgecompile.passes.quantize  # noqa: E402
import edgecompile.report.html  # noqa: E402
import edgecompile.targets.onnx  # noqa: E402, F401
from edgecompile.pass_manager import parse  # noqa: E402
from edgecompile.passes import EXACT, PASSES  # noqa: E402

parse(", ".join(EXACT), PASSES)
