"""An append-only log of opaque records that survives crashes."""
