"""DP-SGD at a site, in one process or several."""
