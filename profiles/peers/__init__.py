"""Side-by-side runs against other toolkits and earlier selves, and the real texts that they use. Slow; never in CI."""
