"""Stage results under content keys: found, locked, shared between machines, and kept when storage fails."""
