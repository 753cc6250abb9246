"""Makes a checkpoint small: the pipeline and its methods. The package is also the function edge.api.compress."""

from edge.core.callable_package import make_callable

make_callable(__name__)
