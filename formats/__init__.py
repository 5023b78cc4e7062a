"""What an event looks like on the wire, in the spool and as JSON. Pure functions, no I/O."""
