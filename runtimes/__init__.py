"""What runs a model: one module per engine, each with `open(bundle, options)` and `versions()`."""
