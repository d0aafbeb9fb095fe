"""Price an ONNX model on this CPU from a table of measured operators."""

from edgecompile.hostcost.pricing import Priced, Row, price
from edgecompile.hostcost.profiling import profile

__all__ = ["Priced", "Row", "price", "profile"]
