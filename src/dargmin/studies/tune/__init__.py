"""Tune the penalties of a linear model on a table: `dargmin tune` and `dargmin predict`."""
