"""Types that every part of edge speaks: NumPy and msgspec only, never torch."""
