"""One destination per module, and the flusher that feeds them from the spool."""
