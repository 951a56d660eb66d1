"""Experiments on real data, needing dargmin[studies]; `dargmin curse` is the first of them."""
