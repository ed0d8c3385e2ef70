"""The stages of the method, their loss and their metrics."""
