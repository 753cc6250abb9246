"""What a compressed model lost: perplexity, divergence, agreement. The package is also the function edge.api.evaluate."""

from edge.core.callable_package import make_callable

make_callable(__name__)
