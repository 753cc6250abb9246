"""Weight clustering: tables fitted by k-means, and what trains them."""
