"""What a compressed model lost: perplexity, divergence, agreement. Also the function `edge.api.evaluate`."""

from edge.core.callable_package import make_callable

make_callable(__name__)
