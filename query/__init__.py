"""Questions about firings, in SQL and Python."""
