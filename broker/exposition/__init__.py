"""Every metric that a broker exports: `table` has them all, a module for each group of them."""
