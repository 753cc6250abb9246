"""Many ways to make one model small, beside each other: methods by bits, recipes, and other toolkits."""
