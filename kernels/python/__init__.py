"""edge's low-bit kernels: packed weights, their NumPy reference, the compiled library and its build for a phone."""

from edge.kernels.cross import cross_build
from edge.kernels.lib import library_path, ort_library_path
from edge.kernels.pack import pack, supported, unpack

__all__ = ["cross_build", "library_path", "ort_library_path", "pack", "supported", "unpack"]
