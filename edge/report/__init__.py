"""Results as people look at them: one HTML file, one Markdown card. Also the function `edge.api.report`."""

from edge.core.callable_package import make_callable

make_callable(__name__)
