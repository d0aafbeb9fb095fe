"""Profile an artifact on a device that is reached over a wire: ssh, TVM's RPC, adb, or a Mac."""

from edgecompile.remote.address import Address, parse_address
from edgecompile.remote.measured import Measured, Row
from edgecompile.remote.run import profile

__all__ = ["Address", "Measured", "Row", "parse_address", "profile"]
